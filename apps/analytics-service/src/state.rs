//! The state in SQLite: counts, patient states, next offsets and dead letters, committed together.
//!
//! The file is a cache of the topic. One process opens it at a time. After any error it is opened again, and ingest resumes at
//! its offsets.

mod columns;
mod dead_letters;
mod encoding;
mod script;
mod split;
mod transaction;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use runtime::{Elapsed, timeout};
use smol::stream::StreamExt as _;
use sqlx::{
    ConnectOptions as _, Connection as _, Row as _, SqliteConnection,
    migrate::{MigrateError, Migrator},
    query,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous},
};
use thiserror::Error;
use uuid::Uuid;

use self::encoding::{decode_date, decode_partition, decode_time, decode_year};
pub use self::{
    dead_letters::{DeadLetter, DeadLetterSummary, StoredDeadLetter, WaitingDeadLetters},
    split::Preparation,
    transaction::{Delta, PatientUpsert, Transaction},
};
use crate::{
    counts::{Counts, PatientState},
    partition_counts::PartitionCounts,
};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Time limit of one step of a transaction: a slower disk counts as failed.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit of reading all counts: a slow disk would otherwise never be read to the end.
const LOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit of migrations, which may rewrite the row of every patient.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(120);
/// Pages of the WAL (4 KiB each) before a checkpoint, which waits for the disk. The same pages change again and again, so a
/// longer WAL writes less.
const CHECKPOINT_PAGES: &str = "4000";

/// The open state.
#[derive(Debug)]
pub struct State {
    connection: SqliteConnection,
    waiting: WaitingDeadLetters,
    /// The id of the newest dead letter that was ever counted in `waiting`.
    newest_counted: i64,
    /// Whether `waiting` may be too high: a transaction that forwarded some of them failed, and may have been committed.
    must_recount: bool,
    /// The partitions whose counts of an earlier version are not split by partition.
    unsplit: BTreeSet<i32>,
}

/// Counts and positions in the file when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedState {
    /// The counts of all applied events, by partition.
    pub counts: PartitionCounts,
    /// The position of each partition that was ever read.
    pub positions: BTreeMap<i32, SavedPosition>,
}

/// The position in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedPosition {
    /// The offset of the next record.
    pub next: i64,
    /// The timestamp of the record before it, in milliseconds since 1970.
    pub last_timestamp: Option<i64>,
    /// The id of the topic, if it is known.
    pub topic_id: Option<Uuid>,
    /// The leader epoch of the batch before it, if it is known.
    pub leader_epoch: Option<i32>,
}

/// The state cannot be used. It has to be opened again.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct StateError(String);

impl StateError {
    /// The state has counted partitions that the topic does not have: it was recreated.
    pub fn fewer_partitions(partitions: &[i32], count: i32) -> Self {
        Self(format!(
            "it has counted partitions {partitions:?}, and the topic, which was recreated, has {count}: delete the state to \
             count the topic again"
        ))
    }
}

impl From<sqlx::Error> for StateError {
    fn from(error: sqlx::Error) -> Self {
        Self(match error {
            // SQLite's message names the problem of the file ("disk is full"), never a value.
            sqlx::Error::Database(error) => error.message().to_owned(),
            error => error.to_string(),
        })
    }
}

impl From<Elapsed> for StateError {
    fn from(elapsed: Elapsed) -> Self {
        Self(elapsed.to_string())
    }
}

impl State {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// If it cannot be read and written, or another process has opened it.
    pub async fn open(path: &Path) -> Result<(Self, SavedState), StateError> {
        let failed = |error: StateError| StateError(format!("the state file {}: {error}", path.display()));
        Self::open_file(path).await.map_err(failed)
    }

    async fn open_file(path: &Path) -> Result<(Self, SavedState), StateError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // After a power failure the last transactions may be missing, together with their positions.
            .synchronous(SqliteSynchronous::Normal)
            // A second process would count the events twice.
            .locking_mode(SqliteLockingMode::Exclusive)
            .busy_timeout(Duration::from_secs(1))
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .disable_statement_logging();
        let mut connection = timeout(STEP_TIMEOUT, options.connect()).await??;
        let migrate = Box::pin(MIGRATIONS.run_direct(None, &mut connection, false));
        let migrated = timeout(MIGRATION_TIMEOUT, migrate).await?;
        migrated.map_err(schema_error)?;
        let load = async {
            columns::prepare(&mut connection).await?;
            load(&mut connection).await
        };
        let saved = timeout(LOAD_TIMEOUT, Box::pin(load)).await??;
        let waiting = WaitingDeadLetters::default();
        let mut state = Self { connection, waiting, newest_counted: 0, must_recount: false, unsplit: BTreeSet::new() };
        state.load_unsplit().await?;
        state.count_new_dead_letters().await?;
        Ok((state, saved))
    }

    /// Commits a page, and changes nothing that is read. SQLite opens a file that cannot be written, and reads it.
    async fn check_writable(&mut self) -> Result<(), StateError> {
        // The value is always written, also if it was the same.
        let write = query("PRAGMA user_version = 1").execute(&mut self.connection);
        timeout(STEP_TIMEOUT, write).await??;
        Ok(())
    }

    /// What the file has now.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn saved(&mut self) -> Result<SavedState, StateError> {
        Ok(timeout(LOAD_TIMEOUT, load(&mut self.connection)).await??)
    }

    /// The states of patients, of at most [`Transaction::MAX_PATIENTS`]. Unknown patients are not in the result.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn find_patients(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, PatientState>, StateError> {
        transaction::find_patients(&mut self.connection, ids).await
    }

    /// Commits the states of at most [`Transaction::MAX_PATIENTS`] patients, in the order of their ids, and a delta without
    /// dead letters. For a few records it costs a fraction of a [`Transaction`].
    ///
    /// # Errors
    /// If the state cannot be written. Whether it was, only opening it again tells.
    pub async fn store(&mut self, patients: &[(Uuid, PatientState)], delta: &Delta) -> Result<(), StateError> {
        debug_assert!(delta.dead_letters.is_empty(), "a transaction stores them");
        let store = transaction::store(&mut self.connection, patients, delta);
        let stored = timeout(STEP_TIMEOUT, Box::pin(store)).await;
        if !matches!(stored, Ok(Ok(()))) {
            // Nobody may write into a transaction that was left open. If this fails too, the file is opened again all the same.
            let _ = timeout(STEP_TIMEOUT, query("ROLLBACK").execute(&mut self.connection)).await;
        }
        Ok(stored??)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// If the state cannot be used.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, StateError> {
        Ok(Transaction(timeout(STEP_TIMEOUT, self.connection.begin()).await??))
    }

    /// Closes the file.
    pub async fn close(self) {
        // Everything is committed.
        let _ = timeout(STEP_TIMEOUT, self.connection.close()).await;
    }
}

fn schema_error(error: MigrateError) -> StateError {
    let remedy = match error {
        MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => {
            "; the state is of a newer version of this program: run that version, or delete the file and those whose names begin \
             with its name, to count the topic again"
        }
        _ => "",
    };
    StateError(format!("its schema: {error}{remedy}"))
}

/// Reads row by row: the rows of a hundred thousand dates would take as much memory together as all else.
async fn load(connection: &mut SqliteConnection) -> Result<SavedState, sqlx::Error> {
    let mut saved = SavedState::default();
    let counts = &mut saved.counts;
    let totals = "-- totals\nSELECT partition, active, created, updated, deleted, unknown, last_event FROM totals";
    let mut rows = query(totals).fetch(&mut *connection);
    while let Some(row) = rows.try_next().await? {
        *counts.of(decode_partition(row.try_get("partition")?)) = Counts {
            active: row.try_get("active")?,
            created: row.try_get("created")?,
            updated: row.try_get("updated")?,
            deleted: row.try_get("deleted")?,
            unknown: row.try_get("unknown")?,
            last_event: decode_time(row.try_get("last_event")?),
            ..Counts::default()
        };
    }
    drop(rows);
    let mut rows = query("-- births\nSELECT partition, year, patients FROM births").fetch(&mut *connection);
    while let Some(row) = rows.try_next().await? {
        let births = &mut counts.of(decode_partition(row.try_get("partition")?)).births;
        *births.entry(decode_year(row.try_get("year")?)).or_default() += row.try_get::<i64, _>("patients")?;
    }
    drop(rows);
    let registrations = "-- registrations\nSELECT partition, date, patients FROM registrations";
    let mut rows = query(registrations).fetch(&mut *connection);
    while let Some(row) = rows.try_next().await? {
        let registrations = &mut counts.of(decode_partition(row.try_get("partition")?)).registrations;
        *registrations.entry(decode_date(row.try_get("date")?)).or_default() += row.try_get::<i64, _>("patients")?;
    }
    drop(rows);
    let positions = "-- positions\nSELECT partition, next, last_timestamp, topic_id, leader_epoch FROM positions";
    let mut rows = query(positions).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let position = SavedPosition {
            next: row.try_get("next")?,
            last_timestamp: row.try_get("last_timestamp")?,
            topic_id: row.try_get::<Option<&[u8]>, _>("topic_id")?.and_then(|id| Uuid::from_slice(id).ok()),
            leader_epoch: row.try_get("leader_epoch")?,
        };
        saved.positions.insert(row.try_get("partition")?, position);
    }
    drop(rows);
    Ok(saved)
}

/// The state, shared by its users: open or closed.
#[derive(Debug)]
pub struct SharedState {
    path: PathBuf,
    open: smol::lock::Mutex<Option<State>>,
}

impl SharedState {
    /// A closed state in this file.
    pub fn new(path: PathBuf) -> Self {
        Self { path, open: smol::lock::Mutex::new(None) }
    }

    /// Opens the file, after closing it if it is open.
    ///
    /// # Errors
    /// If the file cannot be opened or written.
    pub async fn open(&self) -> Result<SavedState, StateError> {
        let mut open = self.open.lock().await;
        if let Some(state) = open.take() {
            state.close().await;
        }
        let (state, saved) = State::open(&self.path).await?;
        // It stays open if it cannot be written: its dead letters can still be listed.
        open.insert(state).check_writable().await?;
        Ok(saved)
    }

    /// Runs `work` on the open state.
    ///
    /// # Errors
    /// If it is closed, or `work` fails.
    pub async fn with<T>(&self, work: impl AsyncFnOnce(&mut State) -> Result<T, StateError>) -> Result<T, StateError> {
        match self.open.lock().await.as_mut() {
            // Boxed, because the futures of a transaction are large.
            Some(state) => Box::pin(work(state)).await,
            None => Err(StateError("the state is not open".to_owned())),
        }
    }

    /// Closes the file if it is open.
    pub async fn close(&self) {
        if let Some(state) = self.open.lock().await.take() {
            state.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use chrono::{DateTime, NaiveDate};
    use sqlx::Executor as _;
    use testbed::Scratch;

    use super::*;

    #[test]
    fn a_small_transaction_is_stored_whole_or_not_at_all() {
        let directory = Scratch::new().unwrap();
        let file = directory.path().join("state.sqlite");
        smol::block_on(async {
            let (mut state, _) = State::open(&file).await.unwrap();
            let id = Uuid::from_u128(7);
            let known = PatientState { version: 3, active: true, partition: Some(2), ..PatientState::default() };
            let topic_id = Some(Uuid::from_u128(8));
            let position = SavedPosition { next: 5, last_timestamp: Some(6), topic_id, leader_epoch: Some(9) };
            let date = NaiveDate::from_ymd_opt(2024, 2, 29).unwrap();
            let mut counts = Counts { active: 1, created: 2, ..Counts::default() };
            counts.births.insert(Some(1990), 1);
            counts.registrations.insert(Some(date), 1);
            counts.last_event = DateTime::from_timestamp_millis(9);
            let mut delta = Delta { positions: [(0, position), (2, position)].into(), ..Delta::default() };
            (*delta.counts.of(Some(0)), *delta.counts.of(Some(2))) = (counts.clone(), counts);
            let fail = "CREATE TEMP TRIGGER fail BEFORE INSERT ON main.positions WHEN new.partition = 2
                BEGIN SELECT raise(ABORT, 'as the test wants it'); END";
            state.connection.execute(fail).await.unwrap();
            let error = state.store(&[(id, known)], &delta).await.unwrap_err();
            assert!(error.to_string().contains("as the test wants it"), "{error}");
            assert!(state.find_patients(&[id]).await.unwrap().is_empty(), "nothing of it is stored");
            state.connection.execute("DROP TRIGGER fail").await.unwrap();
            state.store(&[(id, known)], &delta).await.unwrap();
            state.store(&[], &Delta { positions: [(1, position)].into(), ..Delta::default() }).await.unwrap();
            assert_eq!(state.find_patients(&[id]).await.unwrap(), [(id, known)].into());
            state.close().await;
            let (_, saved) = State::open(&file).await.unwrap();
            assert_eq!(saved.counts, delta.counts);
            assert_eq!(saved.positions, [0, 1, 2].map(|partition| (partition, position)).into());
        });
    }

    #[test]
    fn a_state_of_a_newer_version_says_what_to_do() {
        let directory = Scratch::new().unwrap();
        let file = directory.path().join("state.sqlite");
        smol::block_on(async {
            let (mut state, _) = State::open(&file).await.unwrap();
            let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                VALUES (9999, 'later', 1, x'00', 0)";
            state.connection.execute(later).await.unwrap();
            state.close().await;
            let error = State::open(&file).await.unwrap_err().to_string();
            assert!(error.contains("migration 9999") && error.contains("delete the file"), "{error}");
        });
    }

    #[test]
    fn a_state_of_the_first_schema_is_migrated() {
        let directory = Scratch::new().unwrap();
        let file = directory.path().join("state.sqlite");
        smol::block_on(async {
            let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
            let mut old = options.connect().await.unwrap();
            let first = Migrator { migrations: Cow::Borrowed(&MIGRATIONS.migrations[..1]), ..Migrator::DEFAULT };
            first.run_direct(None, &mut old, false).await.unwrap();
            let fill = "INSERT INTO patients (id, version, active, birth_year, registered) VALUES
                    (x'00000000000000000000000000000001', 9223372036854775807, 1, 1969, -1),
                    (x'ffffffffffffffffffffffffffffffff', 0, 0, NULL, NULL),
                    (x'00000000000000000000000000000002', 3, 0, -44, 19782);
                INSERT INTO positions (partition, next, last_timestamp) VALUES (1, 7, 8);
                INSERT INTO totals (name, value) VALUES ('created', 2), ('active', -1), ('last_event', 1500);
                INSERT INTO births (year, patients) VALUES (0, 1), (1969, 3);
                INSERT INTO registrations (date, patients) VALUES (-719162, 2), (-1, 4)";
            old.execute(fill).await.unwrap();
            old.close().await.unwrap();

            let (mut state, saved) = State::open(&file).await.unwrap();
            let counted = Counts {
                created: 2,
                active: -1,
                last_event: DateTime::from_timestamp_millis(1500),
                births: [(None, 1), (Some(1969), 3)].into(),
                registrations: [(None, 2), (NaiveDate::from_ymd_opt(1969, 12, 31), 4)].into(),
                ..Counts::default()
            };
            assert_eq!(state.unsplit, [1].into());
            let position = SavedPosition { next: 7, last_timestamp: Some(8), topic_id: None, leader_epoch: None };
            assert_eq!(saved.positions, BTreeMap::from([(1, position)]));
            assert_eq!(saved.counts.get(None), Some(&counted));
            assert_eq!(saved.counts.iter().count(), 1);
            let date = |text: &str| Some(text.parse::<NaiveDate>().unwrap());
            let expected = [
                (
                    1,
                    PatientState {
                        version: i64::MAX,
                        active: true,
                        birth_year: Some(1969),
                        registered: date("1969-12-31"),
                        changed: None,
                        partition: None,
                    },
                ),
                (u128::MAX, PatientState::default()),
                (
                    2,
                    PatientState {
                        version: 3,
                        active: false,
                        birth_year: None,
                        registered: date("2024-02-29"),
                        changed: None,
                        partition: None,
                    },
                ),
            ];
            let expected = expected.map(|(id, patient)| (Uuid::from_u128(id), patient));
            let mut transaction = state.begin().await.unwrap();
            assert_eq!(transaction.find_patients(&expected.map(|(id, _)| id)).await.unwrap(), expected.into());
        });
    }
}
