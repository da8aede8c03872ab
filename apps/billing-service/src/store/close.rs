//! Closes accounts. Concurrent calls share a statement and its commit.

use std::collections::HashMap;

use postgres::{BatchStatement, Database, Error, Row as _, query};
use uuid::Uuid;

use super::account;
use crate::account::Account;

/// The statement that closes the accounts of many patients. The response is the account, if there is one.
pub(super) enum Close {}

impl BatchStatement for Close {
    type Request = Uuid;
    type Response = Option<Account>;
    const NAME: &'static str = "close account";
    const MAX_REQUESTS: usize = 128;

    async fn execute(database: &Database, patients: &[Uuid]) -> Result<Vec<Option<Account>>, Error> {
        // Sorted, so that statements of several replicas lock the same rows in the same order.
        let mut ids = patients.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let close = database.run_idempotent(async |connection| {
            // A shared statement has a short lock timeout: a transaction may hold one of the rows. Then each call is executed by
            // itself.
            let rows = query(
                "-- close accounts
                WITH closed AS (
                    SELECT closed.patient_id FROM unnest($1::uuid[]) AS closed (patient_id), set_config(
                        'lock_timeout',
                        CASE WHEN cardinality($1) > 1 THEN '100ms' ELSE current_setting('lock_timeout') END,
                        true
                    )
                )
                UPDATE accounts SET status = 'CLOSED', closed_at = coalesce(accounts.closed_at, now())
                FROM closed WHERE accounts.patient_id = closed.patient_id
                RETURNING accounts.patient_id, accounts.id, accounts.status",
            )
            .bind(&ids)
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| Ok((row.try_get("patient_id")?, account(row)?))).collect()
        });
        let closed: HashMap<Uuid, Account> = close.await?;
        Ok(patients.iter().map(|patient| closed.get(patient).cloned()).collect())
    }
}
