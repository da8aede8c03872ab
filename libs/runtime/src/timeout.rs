use std::{
    future::Future,
    time::{Duration, Instant},
};

use futures_lite::future::or;
use futures_util::FutureExt as _;

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
pub fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> impl Future<Output = Result<T, Elapsed>> {
    // Combinators hold the work once. An async function would hold it twice, as its argument and where it awaits it, and each
    // layer around it twice again.
    or(work.map(Ok), sleep(limit).map(move |()| Err(Elapsed(limit))))
}

async fn sleep(limit: Duration) {
    match Instant::now().checked_add(limit) {
        Some(end) if limit >= SHORT => Deadline::at(end).await,
        _ => drop(smol::Timer::after(limit).await),
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
        let shutdown = crate::Shutdown::new();
        for around in [size_of_val(&timeout(SHORT, work())), size_of_val(&shutdown.run_until_stopped(work()))] {
            assert!((1024..1024 + 512).contains(&around), "{around} bytes for work of {}", size_of_val(&work()));
        }
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
