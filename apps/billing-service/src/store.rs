//! Every query of the service.

use std::{str::FromStr, sync::Arc};

use postgres::{Batcher, Database, Error, PgRow, Row as _, query};
use runtime::{Elapsed, timeout};
use smol::lock::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::{
    account::{Account, Holder, Status},
    ledger::{EntryType, LedgerEntry, Money, NewEntry},
};

mod close;
mod open;

/// Queues for entries: those of one account share one. More of them than connections, so that accounts seldom share a queue.
const QUEUES: usize = 256;

/// Accounts and their ledgers.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    opener: Batcher<open::Open>,
    closer: Batcher<close::Close>,
    /// Entries of one account are made one after the other. Those that wait their turn wait here, where they hold no
    /// connection that others could use, and not for the account's row in PostgreSQL.
    queues: Arc<[Mutex<()>]>,
}

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordOutcome {
    /// It is in the ledger, now or since an earlier call.
    Recorded(LedgerEntry),
    /// The patient has no account.
    NoAccount,
    /// It is a charge, and the account is closed.
    Closed,
    /// Its id belongs to another entry of the account.
    OtherEntry,
    /// The account's balance in its currency would leave the range of an `i64`; nothing was entered.
    BalanceOutOfRange,
}

/// PostgreSQL's `numeric_value_out_of_range`.
const OUT_OF_RANGE: &str = "22003";

impl Store {
    /// A store in this database.
    pub fn new(database: Database) -> Self {
        let queues = (0..QUEUES).map(|_| Mutex::new(())).collect();
        Self { opener: Batcher::new(database.clone()), closer: Batcher::new(database.clone()), database, queues }
    }

    /// Opens the account of a patient, or gives the one that there is; true if it is new.
    ///
    /// # Errors
    /// If the database cannot do it.
    pub async fn open(&self, holder: &Holder) -> Result<(Account, bool), Error> {
        let database = self.database.with_shared_deadline();
        if let Some(account) = self.opener.with_shared_deadline().submit(holder.clone()).await? {
            return Ok((account, true));
        }
        // The insert has waited for whoever made it, so a new snapshot sees it; accounts are never deleted.
        let (account, _) = find(&database, holder.patient_id).await?.ok_or(Error::Query(sqlx::Error::RowNotFound))?;
        Ok((account, false))
    }

    /// The account of a patient with its balances.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn find(&self, patient_id: Uuid) -> Result<Option<(Account, Vec<Money>)>, Error> {
        find(&self.database, patient_id).await
    }

    /// Closes the account of a patient, if there is one.
    ///
    /// # Errors
    /// If the database cannot do it.
    pub async fn close(&self, patient_id: Uuid) -> Result<Option<Account>, Error> {
        self.closer.submit(patient_id).await
    }

    /// Makes an entry and its part of the balance, in one statement.
    ///
    /// # Errors
    /// If the database cannot do it.
    pub async fn record(&self, entry: &NewEntry) -> Result<RecordOutcome, Error> {
        let NewEntry { patient_id, transaction_id, entry_type, amount } = entry;
        let database = self.database.with_shared_deadline();
        let turn = self.turn(*patient_id).await?;
        // A repetition finds what the first has made, by the transaction's id.
        let insert = database.run_idempotent(async |connection| {
            // Under the account's lock an entry takes its position and is committed before the next one takes its own, so
            // that whoever has read up to a position has read all before it. The lock also keeps the account from being
            // closed in between. The position is taken after the lock, because the insert reads what the lock gives.
            let row = query(
                "-- record transaction
                WITH account AS (
                    SELECT patient_id, status FROM accounts WHERE patient_id = $1 FOR NO KEY UPDATE
                ), entry AS (
                    INSERT INTO transactions (patient_id, transaction_id, type, amount, currency)
                    SELECT patient_id, $2, $3, $4, $5 FROM account WHERE status = 'ACTIVE' OR $3 <> 'CHARGE'
                    ON CONFLICT (patient_id, transaction_id) DO NOTHING
                    RETURNING position, transaction_id, type, amount, currency, recorded_at
                ), balance AS (
                    INSERT INTO balances (patient_id, currency, amount) SELECT $1, $5, $6 FROM entry
                    ON CONFLICT (patient_id, currency) DO UPDATE SET amount = balances.amount + excluded.amount
                )
                SELECT account.status, entry.* FROM account LEFT JOIN entry ON true",
            )
            .bind(patient_id)
            .bind(transaction_id)
            .bind(entry_type.name())
            .bind(amount.amount)
            .bind(&amount.currency)
            .bind(entry_type.sign() * amount.amount)
            .fetch_optional(connection)
            .await?;
            let Some(row) = row else { return Ok(Some(RecordOutcome::NoAccount)) };
            let new = row.try_get::<Option<i64>, _>("position")?.is_some();
            if new { Ok(Some(RecordOutcome::Recorded(recorded(&row)?))) } else { Ok(None) }
        });
        let inserted = match insert.await {
            // Of this statement only the sum of the balance can be out of range.
            Err(Error::Query(sqlx::Error::Database(error))) if error.code().as_deref() == Some(OUT_OF_RANGE) => {
                return Ok(RecordOutcome::BalanceOutOfRange);
            }
            inserted => inserted?,
        };
        drop(turn);
        if let Some(recording) = inserted {
            return Ok(recording);
        }
        // Either the id was there before, or the account is closed.
        Ok(match find_entry(&database, *patient_id, transaction_id).await? {
            Some(first) if first.entry_type == *entry_type && first.amount == *amount => RecordOutcome::Recorded(first),
            Some(_) => RecordOutcome::OtherEntry,
            None => RecordOutcome::Closed,
        })
    }

    /// Waits for an account's turn to be written to.
    async fn turn(&self, patient_id: Uuid) -> Result<MutexGuard<'_, ()>, Error> {
        // The last bits of a UUID are random in every version that is in use.
        let queue = &self.queues[patient_id.as_bytes()[15] as usize % self.queues.len()];
        let busy =
            |late: Elapsed| Error::Unavailable(format!("waiting for the account's other entries: {late}").into());
        timeout(self.database.acquire_timeout(), queue.lock()).await.map_err(busy)
    }

    /// At most `limit` entries after a position, in order.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn list(&self, patient_id: Uuid, after: i64, limit: i64) -> Result<Vec<LedgerEntry>, Error> {
        let list = self.database.run_idempotent(async |connection| {
            let rows = query(
                "-- list transactions
                SELECT position, transaction_id, type, amount, currency, recorded_at
                FROM transactions WHERE patient_id = $1 AND position > $2 ORDER BY position LIMIT $3",
            )
            .bind(patient_id)
            .bind(after)
            .bind(limit)
            .fetch_all(connection)
            .await?;
            rows.iter().map(recorded).collect()
        });
        list.await
    }
}

async fn find(database: &Database, patient_id: Uuid) -> Result<Option<(Account, Vec<Money>)>, Error> {
    let find = database.run_idempotent(async |connection| {
        let rows = query(
            "-- find account
            SELECT a.id, a.status, b.amount, b.currency
            FROM accounts a LEFT JOIN balances b USING (patient_id)
            WHERE a.patient_id = $1 ORDER BY b.currency",
        )
        .bind(patient_id)
        .fetch_all(connection)
        .await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let mut balances = Vec::new();
        for row in &rows {
            if let Some(currency) = row.try_get("currency")? {
                balances.push(Money { amount: row.try_get("amount")?, currency });
            }
        }
        Ok(Some((account(first)?, balances)))
    });
    find.await
}

async fn find_entry(database: &Database, patient_id: Uuid, transaction_id: &str) -> Result<Option<LedgerEntry>, Error> {
    let find = database.run_idempotent(async |connection| {
        let row = query(
            "-- find transaction
            SELECT position, transaction_id, type, amount, currency, recorded_at
            FROM transactions WHERE patient_id = $1 AND transaction_id = $2",
        )
        .bind(patient_id)
        .bind(transaction_id)
        .fetch_optional(connection)
        .await?;
        row.as_ref().map(recorded).transpose()
    });
    find.await
}

fn account(row: &PgRow) -> Result<Account, sqlx::Error> {
    Ok(Account { id: row.try_get("id")?, status: parsed::<Status>(row, "status")? })
}

fn recorded(row: &PgRow) -> Result<LedgerEntry, sqlx::Error> {
    Ok(LedgerEntry {
        position: row.try_get("position")?,
        transaction_id: row.try_get("transaction_id")?,
        entry_type: parsed::<EntryType>(row, "type")?,
        amount: Money { amount: row.try_get("amount")?, currency: row.try_get("currency")? },
        at: row.try_get("recorded_at")?,
    })
}

fn parsed<T: FromStr<Err = String>>(row: &PgRow, column: &str) -> Result<T, sqlx::Error> {
    row.try_get::<&str, _>(column)?.parse().map_err(|error: String| sqlx::Error::Decode(error.into()))
}
