//! What a batch of records changes, all or nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use chrono::Utc;
use runtime::timeout;
use sqlx::{Row as _, Sqlite, SqliteConnection, query};
use uuid::Uuid;

use super::{
    DEADLINE, DeadLetter, SavedPosition, StateError,
    columns::{self, AT_ONCE, Bound, ROWS, bind},
    encoding::{KNOWN_BYTES, day_number, headers_json, known_bytes, known_of, year_number},
};
use crate::counts::{Counts, PatientState};

static FIND_PATIENTS: LazyLock<String> = LazyLock::new(|| {
    let id = columns::bytes_of(2, size_of::<Uuid>());
    format!(
        "-- known patients
        SELECT id, known FROM (SELECT {id} AS wanted FROM {ROWS}) CROSS JOIN patients ON id = wanted"
    )
});

/// Replaces whole rows, so that SQLite need not look for a conflict first.
static REMEMBER_PATIENTS: LazyLock<String> = LazyLock::new(|| {
    let (id, known) = (columns::bytes_of(2, size_of::<Uuid>()), columns::bytes_of(3, KNOWN_BYTES));
    format!(
        "-- remember patients
        INSERT OR REPLACE INTO patients (id, known) SELECT {id}, {known} FROM {ROWS}"
    )
});

static ADD_TO_BIRTHS: LazyLock<String> = LazyLock::new(|| add_to("births", "year"));

static ADD_TO_REGISTRATIONS: LazyLock<String> = LazyLock::new(|| add_to("registrations", "date"));

/// The SQL that adds to numbers of patients, which a table has by its key.
fn add_to(table: &str, key: &str) -> String {
    let (counted, patients) = (columns::number_of(2), columns::number_of(3));
    format!(
        "-- add to {table}
        INSERT INTO {table} ({key}, patients) SELECT {counted}, {patients} FROM {ROWS}
        ON CONFLICT ({key}) DO UPDATE SET patients = patients + excluded.patients"
    )
}

/// A transaction of the state. It is undone unless it is committed.
#[derive(Debug)]
pub struct Transaction<'a>(pub(super) sqlx::Transaction<'a, Sqlite>);

/// What is known now of some patients, ready to be stored.
pub struct Remember(Bound);

/// What records add up to.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// What the events add up to.
    pub counts: Counts,
    /// Where each partition goes on.
    pub positions: BTreeMap<i32, SavedPosition>,
    /// Records that are no events.
    pub dead_letters: Vec<DeadLetter>,
}

impl Remember {
    /// At most [`Transaction::PATIENTS`], in the order of their ids: the table's, whose pages are then filled one after the
    /// other.
    pub fn new(patients: &[(Uuid, PatientState)]) -> Self {
        let columns = [
            columns::bytes(patients.iter().map(|(id, _)| id.into_bytes())),
            columns::bytes(patients.iter().map(|(_, known)| known_bytes(known))),
        ];
        Self(bind(&REMEMBER_PATIENTS, patients.len(), columns))
    }
}

impl Transaction<'_> {
    /// Patients that are looked up or stored together, at most.
    pub const PATIENTS: usize = AT_ONCE;

    /// What is known of these patients, at most [`Transaction::PATIENTS`]; nothing of those who are not in the result.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn known(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, PatientState>, StateError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let column = columns::bytes(ids.iter().map(|id| id.into_bytes()));
        let rows = timeout(DEADLINE, bind(&FIND_PATIENTS, ids.len(), [column]).fetch_all(&mut *self.0)).await??;
        let mut known = HashMap::with_capacity(rows.len());
        for row in &rows {
            let (id, bytes) = (row.try_get("id")?, row.try_get::<&[u8], _>("known")?);
            let id = Uuid::from_slice(id).map_err(|_| StateError("a patient's id is none".to_owned()))?;
            let broken = || StateError("what is known of a patient cannot be read".to_owned());
            known.insert(id, known_of(bytes).ok_or_else(broken)?);
        }
        Ok(known)
    }

    /// Stores what is known of patients.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub async fn remember(&mut self, patients: Remember) -> Result<(), StateError> {
        timeout(DEADLINE, patients.0.execute(&mut *self.0)).await??;
        Ok(())
    }

    /// Adds what the records add up to, and ends the transaction.
    ///
    /// # Errors
    /// If the state cannot be written. Whether it was, only opening it anew tells.
    pub async fn commit(mut self, commit: &Delta) -> Result<(), StateError> {
        let work = async {
            add(&mut self.0, commit).await?;
            self.0.commit().await
        };
        timeout(DEADLINE, Box::pin(work)).await??;
        Ok(())
    }
}

async fn add(connection: &mut SqliteConnection, commit: &Delta) -> Result<(), sqlx::Error> {
    let Delta { counts, positions, dead_letters } = commit;
    query(
        "-- add to totals
        INSERT INTO totals (name, value)
        VALUES ('active', ?), ('created', ?), ('updated', ?), ('deleted', ?), ('unknown', ?)
        ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
    )
    .bind(counts.active)
    .bind(counts.created)
    .bind(counts.updated)
    .bind(counts.deleted)
    .bind(counts.unknown)
    .execute(&mut *connection)
    .await?;
    if let Some(last_event) = counts.last_event {
        query(
            "-- last event
            INSERT INTO totals (name, value) VALUES ('last_event', ?)
            ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
        )
        .bind(last_event.timestamp_millis())
        .execute(&mut *connection)
        .await?;
    }
    add_counts(connection, &ADD_TO_BIRTHS, &counts.births, year_number).await?;
    add_counts(connection, &ADD_TO_REGISTRATIONS, &counts.registrations, day_number).await?;
    for letter in dead_letters {
        query(
            "-- park dead letter
            INSERT INTO dead_letters (partition, \"offset\", key, value, value_bytes, headers, error, parked_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(letter.partition)
        .bind(letter.offset)
        .bind(&letter.key)
        .bind(&letter.value)
        .bind(letter.value.as_ref().map_or(0, Vec::len) as i64)
        .bind(headers_json(&letter.headers))
        .bind(&letter.error)
        .bind(Utc::now().timestamp_millis())
        .execute(&mut *connection)
        .await?;
    }
    for (partition, position) in positions {
        query(
            "-- move position
            INSERT INTO positions (partition, next, last_timestamp, topic_id) VALUES (?, ?, ?, ?)
            ON CONFLICT (partition) DO UPDATE
            SET next = excluded.next, last_timestamp = excluded.last_timestamp, topic_id = excluded.topic_id",
        )
        .bind(partition)
        .bind(position.next)
        .bind(position.last_timestamp)
        .bind(position.topic_id.map(|id| id.into_bytes().to_vec()))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Adds to counts by what is counted, which a number stands for.
async fn add_counts<K: Copy>(
    connection: &mut SqliteConnection,
    statement: &'static str,
    counts: &BTreeMap<K, i64>,
    number: fn(K) -> i32,
) -> Result<(), sqlx::Error> {
    let rows: Vec<_> =
        counts.iter().filter(|(_, count)| **count != 0).map(|(&key, &count)| (number(key).into(), count)).collect();
    for part in rows.chunks(AT_ONCE) {
        let columns = [
            columns::numbers(part.iter().map(|(key, _)| *key)),
            columns::numbers(part.iter().map(|(_, count)| *count)),
        ];
        bind(statement, part.len(), columns).execute(&mut *connection).await?;
    }
    Ok(())
}
