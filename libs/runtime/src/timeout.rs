use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;

use crate::deadlines::Deadline;

/// Limits below this are timers of smol's, because they are often reached: they are pauses that something may cut short.
const SHORT: Duration = Duration::from_millis(50);

/// The work did not end within its time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer within {} ms", .0.as_millis())]
pub struct Elapsed(pub Duration);

/// Runs `work` for at most `limit`, then drops it.
///
/// # Errors
/// [`Elapsed`] if the work did not end in time.
pub fn timeout<F: Future>(limit: Duration, work: F) -> impl Future<Output = Result<F::Output, Elapsed>> {
    Timeout { work, limit, elapsed: sleep(limit) }
}

async fn sleep(limit: Duration) {
    match Instant::now().checked_add(limit) {
        Some(end) if limit >= SHORT => Deadline::at(end).await,
        _ => drop(smol::Timer::after(limit).await),
    }
}

pin_project! {
    /// Work with its time limit. A type, because an async function would hold the work twice: as its argument, and where it
    /// awaits it; and each layer around it twice again.
    struct Timeout<F, S> {
        #[pin]
        work: F,
        limit: Duration,
        #[pin]
        elapsed: S,
    }
}

impl<F: Future, S: Future<Output = ()>> Future for Timeout<F, S> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.work.poll(context) {
            return Poll::Ready(Ok(output));
        }
        ready!(this.elapsed.poll(context));
        Poll::Ready(Err(Elapsed(*this.limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_never_ends_is_dropped() {
        for limit in [Duration::ZERO, Duration::from_millis(5), SHORT] {
            let started = Instant::now();
            assert_eq!(smol::block_on(timeout(limit, std::future::pending::<()>())), Err(Elapsed(limit)));
            assert!(started.elapsed() >= limit);
            assert_eq!(smol::block_on(timeout(limit, async { 7 })), Ok(7));
        }
        assert_eq!(smol::block_on(timeout(Duration::MAX, async { 7 })), Ok(7));
    }

    #[test]
    fn it_holds_its_work_once() {
        let work = || async {
            let held = [0_u8; 1024];
            std::future::pending::<()>().await;
            held
        };
        let (alone, limited) = (size_of_val(&work()), size_of_val(&timeout(SHORT, work())));
        assert!((1024..1024 + 512).contains(&limited), "{limited} bytes for work of {alone}");
    }

    #[test]
    fn each_of_many_ends_in_its_time_whatever_becomes_of_the_others() {
        let started = Instant::now();
        let work = |n: u64| {
            // In no order; every third is dropped before its time.
            let limit = SHORT + Duration::from_millis(n * 37 % 100);
            let until = if n.is_multiple_of(3) { limit / 2 } else { limit * 100 };
            crate::spawn(async move {
                let elapsed = timeout(limit, smol::Timer::after(until)).await.is_err();
                (elapsed != n.is_multiple_of(3)).then(|| (limit, started.elapsed()))
            })
        };
        crate::block_on(2, async {
            for task in (0..300).map(work).collect::<Vec<_>>() {
                let (limit, took) = task.await.expect("only what takes longer is late");
                assert!(took >= limit / 2 && took < limit + Duration::from_secs(5), "{took:?} of {limit:?}");
            }
        });
    }
}
