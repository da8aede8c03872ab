//! Records an entry and updates the balance, in one statement.

use std::time::Instant;

use postgres::{Database, Error, Row as _, query};

use super::{RecordOutcome, recorded, remaining_lock_timeout};
use crate::ledger::NewEntry;

/// PostgreSQL's `numeric_value_out_of_range`.
const OUT_OF_RANGE: &str = "22003";

/// What the statement has done.
pub(super) enum Insertion {
    /// The outcome is known.
    Done(RecordOutcome),
    /// Nothing was entered: the id exists, or the account is closed.
    Rejected,
    /// Nothing was entered: the sequence is behind the account's last position, which this is.
    PositionsBehind(i64),
}

/// Enters `entry`, unless its id exists. Waits for the account until `wait_until`.
pub(super) async fn insert(database: &Database, entry: &NewEntry, wait_until: Instant) -> Result<Insertion, Error> {
    let NewEntry { patient_id, transaction_id, entry_type, amount } = entry;
    // Idempotent: a repetition finds the entry by the transaction id.
    let insert = database.run_idempotent(async |connection| {
        // Under the account's row lock an entry takes its position and commits before the next one takes its own, so a client that
        // has read up to a position has read everything before it. The lock also keeps the account from being closed meanwhile.
        // The position is taken after the lock, because it is selected from the locked row. One that is not above the account's
        // last is not used: the sequence was reset, or not restored with the rows.
        let row = query(
            "-- record transaction
            WITH account AS (
                SELECT patient_id, status FROM accounts, set_config('lock_timeout', $7, true)
                WHERE patient_id = $1 FOR NO KEY UPDATE OF accounts
            ), latest AS (
                SELECT coalesce(max(position), 0) AS last_position FROM transactions WHERE patient_id = $1
            ), taken AS (
                SELECT nextval('transactions_position_seq') AS next_position FROM account
                WHERE status = 'ACTIVE' OR $3 <> 'CHARGE'
            ), entry AS (
                INSERT INTO transactions (position, patient_id, transaction_id, type, amount, currency) OVERRIDING SYSTEM VALUE
                SELECT next_position, $1, $2, $3, $4, $5 FROM taken, latest WHERE next_position > last_position
                ON CONFLICT (patient_id, transaction_id) DO NOTHING
                RETURNING position, transaction_id, type, amount, currency, recorded_at
            ), balance AS (
                INSERT INTO balances (patient_id, currency, amount) SELECT $1, $5, $6 FROM entry
                ON CONFLICT (patient_id, currency) DO UPDATE SET amount = balances.amount + excluded.amount
            )
            SELECT last_position, next_position, entry.*
            FROM account CROSS JOIN latest LEFT JOIN taken ON true LEFT JOIN entry ON true",
        )
        .bind(patient_id)
        .bind(transaction_id)
        .bind(entry_type.name())
        .bind(amount.amount)
        .bind(&amount.currency)
        .bind(entry_type.sign() * amount.amount)
        .bind(remaining_lock_timeout(wait_until).as_millis().to_string())
        .fetch_optional(connection)
        .await;
        let row = match row {
            // Of this statement only the sum of the balance can be out of range.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(OUT_OF_RANGE) => {
                return Ok(Insertion::Done(RecordOutcome::BalanceOutOfRange));
            }
            row => row?,
        };
        let Some(row) = row else { return Ok(Insertion::Done(RecordOutcome::NoAccount)) };
        if row.try_get::<Option<i64>, _>("position")?.is_some() {
            return Ok(Insertion::Done(RecordOutcome::Recorded(recorded(&row)?)));
        }
        let (last, next): (i64, Option<i64>) = (row.try_get("last_position")?, row.try_get("next_position")?);
        Ok(if next.is_some_and(|next| next <= last) { Insertion::PositionsBehind(last) } else { Insertion::Rejected })
    });
    insert.await
}

/// Advances the sequence of positions past `last`, if it is behind.
pub(super) async fn move_positions_past(database: &Database, last: i64) -> Result<(), Error> {
    tracing::warn!(last, "the sequence of the ledger's positions is behind them; it is moved past them");
    // Another account may have later positions, for which this happens again.
    database.move_sequence_past("transactions_position_seq", last).await
}
