//! A transaction of the state: all changes of a batch of records, or none.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use chrono::Utc;
use runtime::timeout;
use sqlx::{Row as _, Sqlite, SqliteConnection, query};
use uuid::Uuid;

use super::{
    DeadLetter, STEP_TIMEOUT, SavedPosition, StateError,
    columns::{self, BoundStatement, MAX_ROWS, ROWS, bind},
    encoding::{
        PATIENT_STATE_BYTES, decode_patient_state, encode_date, encode_headers, encode_partition, encode_patient_state,
        encode_time, encode_year,
    },
    script::Script,
};
use crate::{
    counts::{Counts, PatientState},
    partition_counts::PartitionCounts,
};

static FIND_PATIENTS: LazyLock<String> = LazyLock::new(|| {
    let id = columns::bytes_of(2, size_of::<Uuid>());
    format!(
        "-- find patients
        SELECT id, known FROM (SELECT {id} AS wanted FROM {ROWS}) CROSS JOIN patients ON id = wanted"
    )
});

/// Replaces whole rows, so SQLite does not look for conflicts first.
static UPSERT_PATIENTS: LazyLock<String> = LazyLock::new(|| {
    let (id, known) = (columns::bytes_of(2, size_of::<Uuid>()), columns::bytes_of(3, PATIENT_STATE_BYTES));
    format!(
        "-- upsert patients
        INSERT OR REPLACE INTO patients (id, known) SELECT {id}, {known} FROM {ROWS}"
    )
});

static ADD_TO_TOTALS: LazyLock<String> = LazyLock::new(|| {
    let columns = [2, 3, 4, 5, 6, 7, 8].map(columns::number_of).join(", ");
    format!(
        "-- add to totals
        INSERT INTO totals (partition, active, created, updated, deleted, unknown, last_event)
        SELECT {columns} FROM {ROWS}
        ON CONFLICT (partition) DO UPDATE SET
            active = active + excluded.active, created = created + excluded.created,
            updated = updated + excluded.updated, deleted = deleted + excluded.deleted,
            unknown = unknown + excluded.unknown, last_event = max(last_event, excluded.last_event)"
    )
});

static ADD_TO_BIRTHS: LazyLock<String> = LazyLock::new(|| add_to("births", "year"));

static ADD_TO_REGISTRATIONS: LazyLock<String> = LazyLock::new(|| add_to("registrations", "date"));

/// The SQL that adds to the numbers of patients in a table with this key.
fn add_to(table: &str, key: &str) -> String {
    let [partition, counted, patients] = [2, 3, 4].map(columns::number_of);
    format!(
        "-- add to {table}
        INSERT INTO {table} (partition, {key}, patients) SELECT {partition}, {counted}, {patients} FROM {ROWS}
        ON CONFLICT (partition, {key}) DO UPDATE SET patients = patients + excluded.patients"
    )
}

/// A transaction of the state. It is rolled back when it is dropped.
#[derive(Debug)]
pub struct Transaction<'a>(pub(super) sqlx::Transaction<'a, Sqlite>);

/// A statement that stores the states of patients.
pub struct PatientUpsert(pub(super) BoundStatement);

/// The changes of a batch of records.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// The counts of the events.
    pub counts: PartitionCounts,
    /// The position of each partition after the batch.
    pub positions: BTreeMap<i32, SavedPosition>,
    /// Records that cannot be decoded.
    pub dead_letters: Vec<DeadLetter>,
}

impl PatientUpsert {
    /// At most [`Transaction::MAX_PATIENTS`], in the order of their ids, which is the order of the table: so pages are filled
    /// one after the other.
    pub fn new(patients: &[(Uuid, PatientState)]) -> Self {
        Self(bind(&UPSERT_PATIENTS, patients.len(), columns_of(patients)))
    }
}

impl Transaction<'_> {
    /// The largest number of patients that one statement finds or stores.
    pub const MAX_PATIENTS: usize = MAX_ROWS;

    /// The states of patients, of at most [`Transaction::MAX_PATIENTS`]. Unknown patients are not in the result.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn find_patients(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, PatientState>, StateError> {
        find_patients(&mut self.0, ids).await
    }

    /// Stores the states of patients.
    ///
    /// # Errors
    /// If the state cannot be written.
    pub async fn upsert_patients(&mut self, patients: PatientUpsert) -> Result<(), StateError> {
        timeout(STEP_TIMEOUT, patients.0.execute(&mut *self.0)).await??;
        Ok(())
    }

    /// Adds the changes and commits.
    ///
    /// # Errors
    /// If the state cannot be written. The commit may have succeeded: opening the file again shows it.
    pub async fn commit(mut self, delta: &Delta) -> Result<(), StateError> {
        let work = async {
            add(&mut self.0, delta).await?;
            self.0.commit().await
        };
        timeout(STEP_TIMEOUT, Box::pin(work)).await??;
        Ok(())
    }
}

/// The states of patients, as [`Transaction::find_patients`] returns them.
pub(super) async fn find_patients(
    connection: &mut SqliteConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, PatientState>, StateError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let column = columns::bytes(ids.iter().map(|id| id.into_bytes()));
    let rows = timeout(STEP_TIMEOUT, bind(&FIND_PATIENTS, ids.len(), [column]).fetch_all(connection)).await??;
    let mut patients = HashMap::with_capacity(rows.len());
    for row in &rows {
        let (id, bytes) = (row.try_get("id")?, row.try_get::<&[u8], _>("known")?);
        let id = Uuid::from_slice(id).map_err(|_| StateError("a patient id is invalid".to_owned()))?;
        let invalid = || StateError("a patient state is invalid".to_owned());
        patients.insert(id, decode_patient_state(bytes).ok_or_else(invalid)?);
    }
    Ok(patients)
}

/// Commits the states of at most [`Transaction::MAX_PATIENTS`] patients, in the order of their ids, and a delta without dead
/// letters, with one command to SQLite's thread.
pub(super) async fn store(
    connection: &mut SqliteConnection,
    patients: &[(Uuid, PatientState)],
    delta: &Delta,
) -> Result<(), sqlx::Error> {
    let mut script = Script::default();
    script.add("BEGIN IMMEDIATE");
    if !patients.is_empty() {
        add_rows(&mut script, &UPSERT_PATIENTS, patients.len(), columns_of(patients))?;
    }
    add_delta(&mut script, delta)?;
    script.add("COMMIT");
    script.execute(connection).await
}

fn columns_of(patients: &[(Uuid, PatientState)]) -> [Vec<u8>; 2] {
    [
        columns::bytes(patients.iter().map(|(id, _)| id.into_bytes())),
        columns::bytes(patients.iter().map(|(_, patient)| encode_patient_state(patient))),
    ]
}

fn add_rows<const COLUMNS: usize>(
    script: &mut Script,
    statement: &str,
    rows: usize,
    columns: [Vec<u8>; COLUMNS],
) -> Result<(), sqlx::Error> {
    script.add(statement);
    script.bind([rows as i64])?;
    script.bind(columns)
}

async fn add(connection: &mut SqliteConnection, delta: &Delta) -> Result<(), sqlx::Error> {
    for dead_letter in &delta.dead_letters {
        query(
            "-- insert dead letter
            INSERT INTO dead_letters (partition, \"offset\", key, value, value_bytes, headers, error, parked_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(dead_letter.partition)
        .bind(dead_letter.offset)
        .bind(&dead_letter.key)
        .bind(&dead_letter.value)
        .bind(dead_letter.value.as_ref().map_or(0, Vec::len) as i64)
        .bind(encode_headers(&dead_letter.headers))
        .bind(&dead_letter.error)
        .bind(Utc::now().timestamp_millis())
        .execute(&mut *connection)
        .await?;
    }
    let mut script = Script::default();
    add_delta(&mut script, delta)?;
    script.execute(connection).await
}

/// Adds a delta to a script, apart from its dead letters.
fn add_delta(script: &mut Script, delta: &Delta) -> Result<(), sqlx::Error> {
    let Delta { counts, positions, dead_letters: _ } = delta;
    add_counts(script, counts)?;
    for (partition, position) in positions {
        script.add(
            "-- upsert position
            INSERT INTO positions (partition, next, last_timestamp, leader_epoch, topic_id) VALUES (?1, ?2, ?3, ?4, ?5)
            ON CONFLICT (partition) DO UPDATE
            SET next = excluded.next, last_timestamp = excluded.last_timestamp, leader_epoch = excluded.leader_epoch,
                topic_id = excluded.topic_id",
        );
        let leader_epoch = position.leader_epoch.map(i64::from);
        script.bind([Some(i64::from(*partition)), Some(position.next), position.last_timestamp, leader_epoch])?;
        script.bind([position.topic_id.map(|id| id.into_bytes().to_vec())])?;
    }
    Ok(())
}

/// Adds counts to a script.
pub(super) fn add_counts(script: &mut Script, counts: &PartitionCounts) -> Result<(), sqlx::Error> {
    let totals = counts.iter().map(|(partition, counts)| {
        let Counts { active, created, updated, deleted, unknown, last_event, .. } = *counts;
        [encode_partition(*partition).into(), active, created, updated, deleted, unknown, encode_time(last_event)]
    });
    add_numbers(script, &ADD_TO_TOTALS, &totals.collect::<Vec<_>>())?;
    add_numbers(script, &ADD_TO_BIRTHS, &rows_of(counts, |counts| &counts.births, encode_year))?;
    add_numbers(script, &ADD_TO_REGISTRATIONS, &rows_of(counts, |counts| &counts.registrations, encode_date))
}

/// Partition, key and number of patients of each changed row of a table.
fn rows_of<K: Copy>(
    counts: &PartitionCounts,
    table: impl Fn(&Counts) -> &BTreeMap<K, i64>,
    encode: fn(K) -> i32,
) -> Vec<[i64; 3]> {
    let rows = counts.iter().flat_map(|(partition, counts)| {
        let partition = encode_partition(*partition).into();
        table(counts).iter().map(move |(key, patients)| [partition, encode(*key).into(), *patients])
    });
    rows.filter(|[.., patients]| *patients != 0).collect()
}

/// Adds a statement for each part of these rows that a statement takes.
fn add_numbers<const COLUMNS: usize>(
    script: &mut Script,
    statement: &str,
    rows: &[[i64; COLUMNS]],
) -> Result<(), sqlx::Error> {
    for part in rows.chunks(MAX_ROWS) {
        let columns = std::array::from_fn(|column| columns::numbers(part.iter().map(|row| row[column])));
        add_rows::<COLUMNS>(script, statement, part.len(), columns)?;
    }
    Ok(())
}
