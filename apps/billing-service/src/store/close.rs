//! Closes accounts. Concurrent calls share a statement and its commit.

use std::{collections::HashMap, time::Instant};

use postgres::{BatchStatement, Database, Error, Row as _, query};
use uuid::Uuid;

use super::{account, remaining_lock_timeout};
use crate::account::Account;

/// A call to close an account.
#[derive(Clone, Copy)]
pub(super) struct Closing {
    pub(super) patient_id: Uuid,
    /// Until when it may wait for the account.
    pub(super) wait_until: Instant,
}

/// The statement that closes the accounts of many patients. The response is the account, if there is one.
pub(super) enum Close {}

impl BatchStatement for Close {
    type Request = Closing;
    type Response = Option<Account>;
    const NAME: &'static str = "close account";
    const MAX_REQUESTS: usize = 128;

    fn subject(closing: &Closing) -> Option<u128> {
        Some(closing.patient_id.as_u128())
    }

    fn wait_until(closing: &Closing) -> Option<Instant> {
        Some(closing.wait_until)
    }

    async fn execute(database: &Database, calls: &[Closing]) -> Result<Vec<Option<Account>>, Error> {
        // Sorted, so that statements of several replicas lock the same rows in the same order.
        let mut ids: Vec<_> = calls.iter().map(|call| call.patient_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let wait_until = calls.iter().map(|call| call.wait_until).min().unwrap_or_else(Instant::now);
        let close = database.run_idempotent(async |connection| {
            let limit = remaining_lock_timeout(wait_until).min(database.lock_timeout());
            let rows = query(
                "-- close accounts
                WITH closed AS (
                    SELECT closed.patient_id FROM unnest($1::uuid[]) AS closed (patient_id),
                        set_config('lock_timeout', $2, true)
                )
                UPDATE accounts SET status = 'CLOSED', closed_at = coalesce(accounts.closed_at, now())
                FROM closed WHERE accounts.patient_id = closed.patient_id
                RETURNING accounts.patient_id, accounts.id, accounts.status",
            )
            .bind(&ids)
            .bind(limit.as_millis().to_string())
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| Ok((row.try_get("patient_id")?, account(row)?))).collect()
        });
        let closed: HashMap<Uuid, Account> = close.await?;
        Ok(calls.iter().map(|call| closed.get(&call.patient_id).cloned()).collect())
    }
}
