//! The calls under way, and what they may hold.
//!
//! A call's request is incomplete at first, then waits for its turn, then its handler is at work, then its answer is sent. A
//! client can prolong the first and the last as long as it likes, so these two never keep others out: they are counted
//! apart, and when there are too many, those that have waited for their client longest are given up. Only complete requests
//! take a place at work.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use runtime::{Shutdown, timeout};
use smol::lock::{Semaphore, SemaphoreGuardArc};
use tonic::Status;

use crate::{Limits, connections::Clock};

/// What a call costs beside its request, in bytes: its future, and the buffer in which its head was received and whose parts
/// its metadata are.
const COST: usize = 8 * 1024;

/// Every call of a server.
pub(crate) struct Calls {
    limits: Limits,
    clock: Clock,
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Calls without an answer, with the bytes that their requests hold.
    held: HashMap<u64, (usize, Arc<Call>)>,
    /// Of those, the ones whose requests are incomplete, in the order in which they came.
    incomplete: BTreeSet<u64>,
    /// The bytes of all of them.
    bytes: usize,
    /// Calls whose answers are being sent.
    sending: HashMap<u64, Arc<Call>>,
}

/// One call, as others see it.
#[derive(Default)]
pub(crate) struct Call {
    /// Tells that its incomplete request was given up for another one.
    pub(crate) given_up: Shutdown,
    /// Tells that its answer is broken off: its reader may never ask for the rest.
    pub(crate) broken_off: Shutdown,
    /// When its reader last took a part of the answer.
    taken: AtomicU64,
    /// Whether it is the reader that is waited for, and not the handler.
    awaits_reader: AtomicBool,
}

impl Calls {
    pub(crate) fn new(limits: Limits, clock: Clock) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(limits.running));
        Arc::new(Self { limits, clock, places, state: Mutex::default() })
    }

    /// Takes a call in whose request is incomplete.
    pub(crate) fn arrive(self: &Arc<Self>, call: Arc<Call>) -> Result<Held, Status> {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.held.insert(id, (0, call));
        state.incomplete.insert(id);
        let is_there_room = state.take(id, COST, self.limits.request_bytes);
        drop(state);
        let held = Held { id, calls: self.clone() };
        if is_there_room { Ok(held) } else { Err(exhausted()) }
    }

    /// A place at work, for a complete request.
    pub(crate) async fn place(&self) -> Result<SemaphoreGuardArc, Status> {
        match self.places.try_acquire_arc() {
            Some(place) => Ok(place),
            None => {
                let turn = timeout(self.limits.turn_wait, self.places.acquire_arc());
                turn.await.map_err(|_| exhausted())
            }
        }
    }

    /// Takes in a call whose answer is being sent.
    pub(crate) fn send(self: &Arc<Self>, call: Arc<Call>) -> Sending {
        call.taken.store(self.clock.now(), Ordering::Relaxed);
        let mut state = self.lock();
        if state.sending.len() >= self.limits.sending {
            let slowest = state.sending.iter().map(|(id, call)| (call.taken.load(Ordering::Relaxed), *id)).min();
            if let Some(call) = slowest.and_then(|(_, id)| state.sending.remove(&id)) {
                call.broken_off.trigger();
            }
        }
        let id = state.next;
        state.next += 1;
        state.sending.insert(id, call.clone());
        drop(state);
        Sending { id, call, calls: self.clone() }
    }

    /// Breaks off answers whose readers have taken nothing for too long.
    pub(crate) fn break_off_overdue(&self) {
        for call in self.lock().sending.values() {
            let taken = call.taken.load(Ordering::Relaxed);
            if call.awaits_reader.load(Ordering::Relaxed) && self.clock.is_past(taken, self.limits.reader_wait) {
                call.broken_off.trigger();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets a call hold more, at the cost of others that are incomplete if need be; false if there is no room, or it was given
    /// up for another one.
    fn take(&mut self, id: u64, more: usize, limit: usize) -> bool {
        while self.bytes + more > limit {
            let oldest = self.incomplete.iter().copied().find(|other| *other != id);
            let Some((_, call)) = oldest.and_then(|oldest| self.forget(oldest)) else { return false };
            call.given_up.trigger();
        }
        let Some((bytes, _)) = self.held.get_mut(&id) else { return false };
        *bytes += more;
        self.bytes += more;
        true
    }

    fn forget(&mut self, id: u64) -> Option<(usize, Arc<Call>)> {
        self.incomplete.remove(&id);
        self.held.remove(&id).inspect(|(bytes, _)| self.bytes -= bytes)
    }
}

/// A call without an answer, which holds its request.
pub(crate) struct Held {
    id: u64,
    calls: Arc<Calls>,
}

impl Held {
    /// More of its request has come.
    pub(crate) fn grow(&self, more: usize) -> Result<(), Status> {
        let is_there_room = self.calls.lock().take(self.id, more, self.calls.limits.request_bytes);
        if is_there_room { Ok(()) } else { Err(exhausted()) }
    }

    /// Its request is complete: it is not given up any more.
    pub(crate) fn complete(&self) {
        self.calls.lock().incomplete.remove(&self.id);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.calls.lock().forget(self.id);
    }
}

/// A call whose answer is being sent.
pub(crate) struct Sending {
    id: u64,
    call: Arc<Call>,
    calls: Arc<Calls>,
}

impl Sending {
    /// The reader has room for the next part.
    pub(crate) fn take(&self) {
        self.call.taken.store(self.calls.clock.now(), Ordering::Relaxed);
        self.call.awaits_reader.store(false, Ordering::Relaxed);
    }

    /// The next part was given to the connection.
    pub(crate) fn given(&self) {
        self.call.awaits_reader.store(true, Ordering::Relaxed);
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.calls.lock().sending.remove(&self.id);
    }
}

/// What a call gets for which there is no room: the peer is there, and the same call may succeed later.
pub(crate) fn exhausted() -> Status {
    Status::resource_exhausted("the service has too many calls under way")
}
