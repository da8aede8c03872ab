//! Deadlines that are seldom reached, which is nearly all of them.
//!
//! A timer of smol's costs a system call when it is set, and another round of the reactor, whether it ends or not; a request
//! sets half a dozen. Here a deadline is an entry in a map, and one thread sleeps until the earliest that it knows of. Those
//! that are set later and end later do not wake it, and one that is taken out is only found missing: while deadlines come and
//! go, it wakes about as often as the shortest of them lasts.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    thread,
    time::Instant,
};

/// The thread's stack: it calls wakers, and nothing else.
const STACK: usize = 128 * 1024;

static DEADLINES: LazyLock<Deadlines> = LazyLock::new(|| {
    thread::Builder::new()
        .name("deadlines".to_owned())
        .stack_size(STACK)
        .spawn(|| DEADLINES.run())
        .expect("the system has room for a thread");
    Deadlines::default()
});

#[derive(Default)]
struct Deadlines {
    state: Mutex<State>,
    earlier: Condvar,
}

#[derive(Default)]
struct State {
    /// Who is woken when; the number tells those of one time apart.
    wakers: BTreeMap<(Instant, u64), Waker>,
    next: u64,
    /// Until when the thread sleeps, if it knows.
    sleeps_until: Option<Instant>,
}

/// Ends at a time.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: Instant,
    number: Option<u64>,
}

impl Deadline {
    pub(crate) fn at(at: Instant) -> Self {
        Self { at, number: None }
    }
}

impl Future for Deadline {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        let mut state = DEADLINES.lock();
        let number = *self.number.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        match state.wakers.get_mut(&(self.at, number)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => drop(state.wakers.insert((self.at, number), context.waker().clone())),
        }
        if state.sleeps_until.is_none_or(|until| self.at < until) {
            state.sleeps_until = Some(self.at);
            drop(state);
            DEADLINES.earlier.notify_one();
        }
        Poll::Pending
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let waker = DEADLINES.lock().wakers.remove(&(self.at, number));
            // What a waker drops may be anything.
            drop(waker);
        }
    }
}

impl Deadlines {
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let later = state.wakers.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut state.wakers, later);
            if !due.is_empty() {
                drop(state);
                due.into_values().for_each(Waker::wake);
                state = self.lock();
                continue;
            }
            let first = state.wakers.first_key_value().map(|((at, _), _)| *at);
            state.sleeps_until = first;
            state = match first {
                Some(at) => {
                    let slept = self.earlier.wait_timeout(state, at.saturating_duration_since(now));
                    slept.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.earlier.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
