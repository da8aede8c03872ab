//! The queries of the service.

use std::{
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use postgres::{Batcher, Database, Error, PgRow, Row as _, query};
use runtime::timeout;
use smol::lock::{Mutex, MutexGuard};
use uuid::Uuid;

use self::record::Insertion;
use crate::{
    account::{Account, Holder, Status},
    ledger::{EntryType, LedgerEntry, Money, NewEntry},
};

mod close;
mod open;
mod record;

/// Number of locks for accounts; several accounts share one.
const LOCKS: usize = 256;

/// Accounts and their ledgers.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    opener: Batcher<open::Open>,
    closer: Batcher<close::Close>,
    /// Serialize the entries of an account before they take a database connection, so that waiting for the account's row does
    /// not use up the connections. Indexed by the last byte of the patient's id.
    account_locks: Arc<[Mutex<()>]>,
}

/// Outcome of recording an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordOutcome {
    /// It is in the ledger, by this or an earlier call.
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

impl Store {
    /// The store of a database.
    pub fn new(database: Database) -> Self {
        let account_locks = (0..LOCKS).map(|_| Mutex::new(())).collect();
        Self { opener: Batcher::new(database.clone()), closer: Batcher::new(database.clone()), database, account_locks }
    }

    /// Opens the account of a patient, or returns the existing one; true if it is new.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn open(&self, holder: &Holder) -> Result<(Account, bool), Error> {
        let database = self.database.with_shared_deadline();
        if let Some(account) = self.opener.with_shared_deadline().submit(holder.clone()).await? {
            return Ok((account, true));
        }
        // There is one already: the insert waited for a conflicting transaction, so a new snapshot sees the row, and accounts are
        // never deleted.
        let (account, _) = find(&database, holder.patient_id).await?.ok_or(Error::Query(sqlx::Error::RowNotFound))?;
        Ok((account, false))
    }

    /// The account of a patient with its balances.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn find(&self, patient_id: Uuid) -> Result<Option<(Account, Vec<Money>)>, Error> {
        find(&self.database, patient_id).await
    }

    /// Closes the account of a patient, if there is one. `deadline`: when the caller gives up.
    ///
    /// # Errors
    /// If the database fails, or the account is locked.
    pub async fn close(&self, patient_id: Uuid, deadline: Option<Instant>) -> Result<Option<Account>, Error> {
        self.closer.submit(close::Closing { patient_id, wait_until: self.wait_until(deadline) }).await
    }

    /// Records an entry and updates the balance, in one statement. `deadline`: when the caller gives up.
    ///
    /// # Errors
    /// If the database fails, or the account is locked.
    pub async fn record(&self, entry: &NewEntry, deadline: Option<Instant>) -> Result<RecordOutcome, Error> {
        let NewEntry { patient_id, transaction_id, entry_type, amount } = entry;
        let database = self.database.with_shared_deadline();
        let wait_until = self.wait_until(deadline);
        let lock = self.lock_account(*patient_id, wait_until).await?;
        let inserted = loop {
            match record::insert(&database, entry, wait_until).await? {
                // The database's deadline bounds the repetitions.
                Insertion::PositionsBehind(last) => record::move_positions_past(&database, last).await?,
                inserted => break inserted,
            }
        };
        drop(lock);
        if let Insertion::Done(outcome) = inserted {
            return Ok(outcome);
        }
        // Either the id exists, or the account is closed.
        Ok(match find_entry(&database, *patient_id, transaction_id).await? {
            Some(first) if first.entry_type == *entry_type && first.amount == *amount => RecordOutcome::Recorded(first),
            Some(_) => RecordOutcome::OtherEntry,
            None => RecordOutcome::Closed,
        })
    }

    /// Waits for the lock of an account.
    async fn lock_account(&self, patient_id: Uuid, until: Instant) -> Result<MutexGuard<'_, ()>, Error> {
        // The last byte of a UUID is random in every version in use.
        let lock = &self.account_locks[patient_id.as_bytes()[15] as usize % self.account_locks.len()];
        // Whoever has it waits for the account's row, or for the database; if that is unavailable, it finds out.
        timeout(remaining_lock_timeout(until), lock.lock()).await.map_err(|_| Error::Locked)
    }

    /// Until when a call may wait for what others have locked: for most of the time until its caller gives up. A caller that has
    /// given up takes a locked account for an outage of the whole service.
    fn wait_until(&self, deadline: Option<Instant>) -> Instant {
        let (now, limit) = (Instant::now(), self.database.lock_timeout());
        now + deadline.map_or(limit, |deadline| (deadline.saturating_duration_since(now) / 4 * 3).min(limit))
    }

    /// At most `limit` entries after a position, in order.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list(&self, patient_id: Uuid, after: i64, limit: i64) -> Result<Vec<LedgerEntry>, Error> {
        let list = self.database.read(async |connection| {
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

/// The `lock_timeout` of a statement that may wait until then. Zero would be no limit.
fn remaining_lock_timeout(wait_until: Instant) -> Duration {
    wait_until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

async fn find(database: &Database, patient_id: Uuid) -> Result<Option<(Account, Vec<Money>)>, Error> {
    let find = database.read(async |connection| {
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
    let find = database.read(async |connection| {
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
