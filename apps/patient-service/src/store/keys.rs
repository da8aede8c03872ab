//! Idempotency keys: which request used one, and how old it is.
//!
//! PostgreSQL's clock may step, by an hour or by days, when the server moves to another host or somebody sets the clock. A
//! key must not expire early because of that: a repeated request could make a second patient. So a key ages only in observed
//! time: replicas observe the clock periodically, and a gap between two observations that is too long does not count.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use postgres::{Error, PgConnection, Row as _, query};
use uuid::Uuid;

use super::Store;

/// An observation of PostgreSQL's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockObservation {
    /// Keys created before this time have expired.
    pub keys_expired_before: DateTime<Utc>,
    /// Time since the last observation, if it is not plausible: too long if the clock was set forward or no replica ran, negative
    /// if the clock was set back.
    pub step: Option<TimeDelta>,
}

/// A period of the clock that was not observed.
#[derive(Clone, Copy, Debug)]
struct Gap {
    began_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
}

impl Store {
    /// The fingerprint and the patient of the request that used this key, if any.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn find_key(&self, key: &str) -> Result<Option<(Vec<u8>, Uuid)>, Error> {
        let find = self.database.read(async |connection| {
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

    /// Observes the clock and computes which keys are older than `retention`. If the last observation, by any replica, was
    /// longer ago than `max_gap`, the time since then does not count.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn observe_clock(&self, retention: Duration, max_gap: Duration) -> Result<ClockObservation, Error> {
        let [retention, max_gap] = [retention, max_gap].map(|time| TimeDelta::from_std(time).unwrap_or(TimeDelta::MAX));
        let observe = self.database.transaction(async |transaction| {
            // Only if somebody has emptied the table.
            query("-- first observation\nINSERT INTO clock_looks (looked_at) VALUES (clock_timestamp()) ON CONFLICT DO NOTHING")
                .execute(&mut *transaction)
                .await?;
            let observed_at: DateTime<Utc> = query("-- last observation\nSELECT looked_at FROM clock_looks FOR UPDATE")
                .fetch_one(&mut *transaction)
                .await?
                .try_get(0)?;
            // Not the transaction's time: it may have waited for another replica's row lock.
            let now: DateTime<Utc> =
                query("-- time now\nSELECT clock_timestamp()").fetch_one(&mut *transaction).await?.try_get(0)?;
            let step = Some(now - observed_at).filter(|passed| *passed > max_gap || *passed < TimeDelta::zero());
            if let Some(passed) = step {
                if passed > max_gap {
                    add_gap(transaction, observed_at, now).await?
                } else {
                    cut_gaps(transaction, now).await?
                }
            }
            query("-- store observation\nUPDATE clock_looks SET looked_at = $1")
                .bind(now)
                .execute(&mut *transaction)
                .await?;
            let keys_expired_before = keys_expired_before(now, retention, &gaps(transaction).await?);
            query("-- delete old gaps\nDELETE FROM clock_gaps WHERE ended_at < $1")
                .bind(keys_expired_before)
                .execute(&mut *transaction)
                .await?;
            Ok(ClockObservation { keys_expired_before, step })
        });
        observe.await
    }

    /// Deletes keys created before a time by the database's clock, at most `limit` of them; returns how many.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn delete_keys(&self, before: DateTime<Utc>, limit: i64) -> Result<u64, Error> {
        let delete = self.database.run(async |connection| {
            let result = query(
                "-- delete idempotency keys
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
        delete.await
    }

    /// Sets the creation time of keys from the future to now, at most `limit` of them; returns how many. They were created
    /// while the clock was ahead, perhaps by years, and would otherwise be kept for that much longer.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn redate_future_keys(&self, limit: i64) -> Result<u64, Error> {
        let redate = self.database.run(async |connection| {
            let result = query(
                "-- redate idempotency keys of the future
                UPDATE idempotency_keys SET created_at = now() WHERE key IN (
                    SELECT key FROM idempotency_keys WHERE created_at > clock_timestamp() LIMIT $1
                )",
            )
            .bind(limit)
            .execute(connection)
            .await?;
            Ok(result.rows_affected())
        });
        redate.await
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

/// The clock was set back to `now`: gaps after it are removed.
async fn cut_gaps(connection: &mut PgConnection, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    query("-- delete gaps of the future\nDELETE FROM clock_gaps WHERE began_at >= $1")
        .bind(now)
        .execute(&mut *connection)
        .await?;
    query("-- cut gap\nUPDATE clock_gaps SET ended_at = $1 WHERE ended_at > $1").bind(now).execute(connection).await?;
    Ok(())
}

/// The gaps, newest first.
async fn gaps(connection: &mut PgConnection) -> Result<Vec<Gap>, sqlx::Error> {
    let rows = query("-- gaps\nSELECT began_at, ended_at FROM clock_gaps ORDER BY ended_at DESC")
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Ok(Gap { began_at: row.try_get(0)?, ended_at: row.try_get(1)? })).collect()
}

/// The time since which `retention` of observed time has passed. `gaps` are ordered newest first.
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
