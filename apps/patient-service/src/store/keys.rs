//! Idempotency keys: which request had one, and how old it is.
//!
//! PostgreSQL's clock may step, by an hour or by days, when it is started on another host or somebody sets it. A key must
//! not be forgotten early because of that: its request, repeated, could make a second patient. So a key ages only in time
//! that somebody saw pass: replicas look at the clock now and then, and what lies between two looks that are too far apart
//! by that clock does not count.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use postgres::{Error, PgConnection, Row as _, query};
use uuid::Uuid;

use super::Store;

/// PostgreSQL's clock, as a look found it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockLook {
    /// Keys that were made before this time by the clock have served theirs.
    pub keys_expired_before: DateTime<Utc>,
    /// How far the clock was from where the last look expects it: forward if no replica has looked meanwhile, backward if
    /// it was set back.
    pub step: Option<TimeDelta>,
}

/// Time by the clock that nobody saw pass.
#[derive(Clone, Copy, Debug)]
struct Gap {
    began_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
}

impl Store {
    /// The fingerprint and the patient of the request that had this key, if there was one.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn find_key(&self, key: &str) -> Result<Option<(Vec<u8>, Uuid)>, Error> {
        let find = self.database.run_idempotent(async |connection| {
            let row = query(
                "-- find idempotency key
                SELECT fingerprint, patient_id FROM idempotency_keys WHERE key = $1",
            )
            .bind(key)
            .fetch_optional(connection)
            .await?;
            row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
        });
        find.await
    }

    /// Looks at the clock and says which keys are older than `retention`. If the last look, by any replica, was longer ago
    /// than `max_gap`, the time since then does not count.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn look_at_clock(&self, retention: Duration, max_gap: Duration) -> Result<ClockLook, Error> {
        let [retention, max_gap] = [retention, max_gap].map(|time| TimeDelta::from_std(time).unwrap_or(TimeDelta::MAX));
        let look = self.database.transaction(async |transaction| {
            let looked_at: DateTime<Utc> = query("-- look at clock\nSELECT looked_at FROM clock_looks FOR UPDATE")
                .fetch_one(&mut *transaction)
                .await?
                .try_get(0)?;
            // Not that of the transaction: it may have waited for another replica's look.
            let now: DateTime<Utc> =
                query("-- time now\nSELECT clock_timestamp()").fetch_one(&mut *transaction).await?.try_get(0)?;
            let step = Some(now - looked_at).filter(|passed| *passed > max_gap || *passed < TimeDelta::zero());
            if let Some(passed) = step {
                if passed > max_gap {
                    add_gap(transaction, looked_at, now).await?
                } else {
                    cut_gaps(transaction, now).await?
                }
            }
            query("-- note look\nUPDATE clock_looks SET looked_at = $1").bind(now).execute(&mut *transaction).await?;
            let keys_expired_before = keys_expired_before(now, retention, &gaps(transaction).await?);
            query("-- forget gaps\nDELETE FROM clock_gaps WHERE ended_at < $1")
                .bind(keys_expired_before)
                .execute(&mut *transaction)
                .await?;
            Ok(ClockLook { keys_expired_before, step })
        });
        look.await
    }

    /// Forgets keys that were made before a time by the database's clock, at most `limit` of them; gives how many.
    ///
    /// # Errors
    /// If the database cannot do it.
    pub async fn forget_keys(&self, before: DateTime<Utc>, limit: i64) -> Result<u64, Error> {
        let forget = self.database.run(async |connection| {
            let result = query(
                "-- forget idempotency keys
                DELETE FROM idempotency_keys WHERE key IN (
                    SELECT key FROM idempotency_keys WHERE created_at < $1 ORDER BY created_at LIMIT $2
                )",
            )
            .bind(before)
            .bind(limit)
            .execute(connection)
            .await?;
            Ok(result.rows_affected())
        });
        forget.await
    }

    /// Has keys that were made while the clock was ahead count from now on, at most `limit` of them; gives how many. They
    /// would stay for as long as the clock was ahead otherwise, be it years.
    ///
    /// # Errors
    /// If the database cannot do it.
    pub async fn date_keys_of_the_future(&self, limit: i64) -> Result<u64, Error> {
        let date = self.database.run(async |connection| {
            let result = query(
                "-- date idempotency keys of the future
                UPDATE idempotency_keys SET created_at = now() WHERE key IN (
                    SELECT key FROM idempotency_keys WHERE created_at > clock_timestamp() LIMIT $1
                )",
            )
            .bind(limit)
            .execute(connection)
            .await?;
            Ok(result.rows_affected())
        });
        date.await
    }
}

async fn add_gap(
    connection: &mut PgConnection,
    began_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    query(
        "-- add gap
        INSERT INTO clock_gaps AS gap (began_at, ended_at) VALUES ($1, $2)
        ON CONFLICT (began_at) DO UPDATE SET ended_at = greatest(gap.ended_at, excluded.ended_at)",
    )
    .bind(began_at)
    .bind(ended_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// The clock was set back to `now`: what lies after it has not passed.
async fn cut_gaps(connection: &mut PgConnection, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    query("-- forget gaps of the future\nDELETE FROM clock_gaps WHERE began_at >= $1")
        .bind(now)
        .execute(&mut *connection)
        .await?;
    query("-- cut gap\nUPDATE clock_gaps SET ended_at = $1 WHERE ended_at > $1").bind(now).execute(connection).await?;
    Ok(())
}

/// The gaps, the newest first.
async fn gaps(connection: &mut PgConnection) -> Result<Vec<Gap>, sqlx::Error> {
    let rows = query("-- gaps\nSELECT began_at, ended_at FROM clock_gaps ORDER BY ended_at DESC")
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Ok(Gap { began_at: row.try_get(0)?, ended_at: row.try_get(1)? })).collect()
}

/// The time by the clock since which `retention` has passed, without the gaps (the newest first).
fn keys_expired_before(now: DateTime<Utc>, retention: TimeDelta, gaps: &[Gap]) -> DateTime<Utc> {
    let (mut end, mut left) = (now, retention);
    for gap in gaps.iter().filter(|gap| gap.ended_at <= now) {
        let passed = (end - gap.ended_at).max(TimeDelta::zero());
        if passed >= left {
            break;
        }
        left -= passed;
        end = end.min(gap.began_at);
    }
    end.checked_sub_signed(left).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(hours)
    }

    #[test]
    fn keys_do_not_age_in_gaps() {
        let gap = |began, ended| Gap { began_at: at(began), ended_at: at(ended) };
        let before = |gaps: &[Gap]| (keys_expired_before(at(100), TimeDelta::hours(24), gaps) - at(0)).num_hours();
        assert_eq!(before(&[]), 76);
        assert_eq!(before(&[gap(80, 99)]), 57, "an hour since it, 23 before it");
        assert_eq!(before(&[gap(90, 95), gap(85, 89)]), 67, "5, 1 and 18");
        assert_eq!(before(&[gap(10, 76)]), 76, "it ended long enough ago");
        assert_eq!(before(&[gap(10, 77)]), 9, "one hour is missing");
        assert_eq!(before(&[gap(90, 101)]), 76, "one that ends in the future is none");
    }
}
