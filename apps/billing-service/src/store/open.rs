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

    async fn execute(database: &Database, holders: &[Holder]) -> Result<Vec<Option<Account>>, Error> {
        // Of two calls for one patient in a statement, the first one's id is returned; the second finds the account afterwards.
        let ids: Vec<Uuid> = holders.iter().map(|_| Uuid::now_v7()).collect();
        let open = database.run_idempotent(async |connection| {
            let rows = query(
                "-- open accounts
                INSERT INTO accounts (patient_id, id, name, email)
                SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[])
                ON CONFLICT (patient_id) DO NOTHING
                RETURNING id, status",
            )
            .bind(holders.iter().map(|holder| holder.patient_id).collect::<Vec<_>>())
            .bind(&ids)
            .bind(holders.iter().map(|holder| &*holder.name).collect::<Vec<_>>())
            .bind(holders.iter().map(|holder| &*holder.email).collect::<Vec<_>>())
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| account(row).map(|account| (account.id, account))).collect()
        });
        let mut opened: HashMap<Uuid, Account> = open.await?;
        Ok(ids.iter().map(|id| opened.remove(id)).collect())
    }
}
