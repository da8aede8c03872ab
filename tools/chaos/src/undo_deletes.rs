//! Makes duplicates: takes back the deletion of events from the outbox, as a failover to a replica that lagged does, or a
//! death of the relay between the broker's acknowledgement and the deletion.
//!
//! The relay finds the events again and publishes them a second time, after newer ones of the same patients.

use std::time::{Duration, Instant};

use testbed::{StartError, sql::Session};

/// After this time most events that were seen are published and deleted.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the outbox is looked at for an event: each is there for a moment only.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How long we look.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Puts events that were in the outbox at some moment back after [`PAUSE`]; gives how many had been deleted meanwhile. Gives
/// up in time not to do anything after `left`.
///
/// # Errors
/// If the database goes away meanwhile.
pub(crate) async fn undo_deletes(database: &str, left: Duration) -> Result<usize, StartError> {
    let Some(timeout) = left.checked_sub(PAUSE) else { return Ok(0) };
    let end = Instant::now() + timeout.min(TIMEOUT);
    let mut session = Session::open(database).await?;
    session.execute("CREATE TEMPORARY TABLE seen (LIKE outbox)").await?;
    while Instant::now() < end {
        let seen = session.rows("INSERT INTO seen SELECT * FROM outbox RETURNING id", |_| Ok(())).await?.len();
        if seen > 0 {
            smol::Timer::after(PAUSE).await;
            let put_back = "INSERT INTO outbox OVERRIDING SYSTEM VALUE SELECT DISTINCT * FROM seen
                ON CONFLICT DO NOTHING RETURNING id";
            let undone = session.rows(put_back, |_| Ok(())).await?.len();
            // None, if the broker is away and they are still there.
            if undone > 0 {
                return Ok(undone);
            }
        }
        smol::Timer::after(POLL_INTERVAL).await;
    }
    Ok(0)
}
