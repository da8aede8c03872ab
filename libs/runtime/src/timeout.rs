use std::{future::Future, time::Duration};

use futures_lite::future::or;

/// The work did not end within its time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer within {} ms", .0.as_millis())]
pub struct Elapsed(pub Duration);

/// Runs `work` for at most `limit`, then drops it.
///
/// # Errors
/// [`Elapsed`] if the work did not end in time.
pub async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    let timer = async {
        smol::Timer::after(limit).await;
        Err(Elapsed(limit))
    };
    or(async { Ok(work.await) }, timer).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_never_ends_is_dropped() {
        let limit = Duration::from_millis(5);
        assert_eq!(smol::block_on(timeout(limit, std::future::pending::<()>())), Err(Elapsed(limit)));
        assert_eq!(smol::block_on(timeout(limit, async { 7 })), Ok(7));
    }
}
