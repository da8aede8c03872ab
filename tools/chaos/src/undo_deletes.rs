//! Causes duplicates: puts deleted events back into the outbox. A failover to a standby that lagged has the same effect, and
//! so has a crash of the relay between the broker's acknowledgement and the deletion.
//!
//! The relay publishes the events a second time, after newer ones of the same patients.

use std::time::{Duration, Instant};

use testbed::{Error, sql::Session};

/// After this time most events are published and deleted.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the outbox is read: an event is in it for a few milliseconds only.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How long the outbox is read.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Copies events from the outbox, and puts them back after [`PAUSE`]. Returns how many of them had been deleted meanwhile.
/// Does nothing after `left`.
///
/// # Errors
/// If the connection to the database is lost.
pub(crate) async fn undo_deletes(database: &str, left: Duration) -> Result<usize, Error> {
    let Some(timeout) = left.checked_sub(PAUSE) else { return Ok(0) };
    let end = Instant::now() + timeout.min(TIMEOUT);
    let mut session = Session::open(database).await?;
    session.execute("CREATE TEMPORARY TABLE copied (LIKE outbox)").await?;
    while Instant::now() < end {
        let shared_stats =
            session.rows("INSERT INTO copied SELECT * FROM outbox RETURNING id", |_| Ok(())).await?.len();
        if shared_stats > 0 {
            smol::Timer::after(PAUSE).await;
            let put_back = "INSERT INTO outbox OVERRIDING SYSTEM VALUE SELECT DISTINCT * FROM copied
                ON CONFLICT DO NOTHING RETURNING id";
            let undone = session.rows(put_back, |_| Ok(())).await?.len();
            // 0 if the broker is unavailable and the events are still in the outbox.
            if undone > 0 {
                return Ok(undone);
            }
        }
        smol::Timer::after(POLL_INTERVAL).await;
    }
    Ok(0)
}
