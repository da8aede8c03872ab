//! Makes duplicates: holds the deletion of events from the outbox that are being published.
//!
//! The relay cannot forget what the broker has acknowledged, as if it had been killed in between, and publishes it again.

use std::time::{Duration, Instant};

use testbed::{StartError, sql::Session};

/// How long a deletion is held: longer than `DATABASE_DEADLINE`, after which the relay gives it up.
pub(crate) const TIME: Duration = Duration::from_millis(2_500);
/// How often the outbox is looked at for an event: each is there for a moment only.
const LOOK: Duration = Duration::from_millis(1);
/// How long we look.
const PATIENCE: Duration = Duration::from_secs(5);

/// Locks the events that are in the outbox at some moment, for [`TIME`]; gives how many there were. Gives up in time not
/// to hold anything after `left`.
///
/// # Errors
/// If the database goes away meanwhile, and the locks with it.
pub(crate) async fn deletions(database: &str, left: Duration) -> Result<usize, StartError> {
    let Some(patience) = left.checked_sub(TIME) else { return Ok(0) };
    let end = Instant::now() + patience.min(PATIENCE);
    let mut session = Session::open(database).await?;
    session.execute("BEGIN").await?;
    while Instant::now() < end {
        // Another place than the relay's: it may have locked them to delete them.
        let locked = session.rows("SELECT id FROM outbox FOR UPDATE SKIP LOCKED", |_| Ok(())).await?.len();
        if locked > 0 {
            smol::Timer::after(TIME).await;
            session.execute("ROLLBACK").await?;
            return Ok(locked);
        }
        smol::Timer::after(LOOK).await;
    }
    Ok(0)
}
