//! Opens accounts. Concurrent calls share a statement and its commit.

use std::collections::HashMap;

use postgres::{BatchStatement, Database, Error, query};
use uuid::Uuid;

use super::account;
use crate::account::{Account, Holder};

/// The statement that opens the accounts of many holders.
pub(super) enum Open {}

impl BatchStatement for Open {
    type Request = Holder;
    /// The account, if it is new.
    type Response = Option<Account>;
    const NAME: &'static str = "open account";
    const MAX_REQUESTS: usize = 128;

    /// An open transaction may hold the account, as that of another replica does until its commit.
    fn subject(holder: &Holder) -> Option<u128> {
        Some(holder.patient_id.as_u128())
    }

    async fn execute(database: &Database, holders: &[Holder]) -> Result<Vec<Option<Account>>, Error> {
        // Of two calls for one patient in a statement, the first one's id is returned; the second finds the account afterwards.
        let ids: Vec<Uuid> = holders.iter().map(|_| Uuid::now_v7()).collect();
        let open = database.run_idempotent(async |connection| {
            let rows = query(
                "-- open accounts
                INSERT INTO accounts (patient_id, id, name, email)
                SELECT holder.* FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) AS holder (patient_id, id, name, email),
                    set_config('lock_timeout', $5, true)
                ON CONFLICT (patient_id) DO NOTHING
                RETURNING id, status",
            )
            .bind(holders.iter().map(|holder| holder.patient_id).collect::<Vec<_>>())
            .bind(&ids)
            .bind(holders.iter().map(|holder| &*holder.name).collect::<Vec<_>>())
            .bind(holders.iter().map(|holder| &*holder.email).collect::<Vec<_>>())
            .bind(database.lock_timeout().as_millis().to_string())
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| account(row).map(|account| (account.id, account))).collect()
        });
        let mut opened: HashMap<Uuid, Account> = open.await?;
        Ok(ids.iter().map(|id| opened.remove(id)).collect())
    }
}
