//! The state: the counts, what is known of each patient, and the next offsets, in one SQLite file and one transaction.
//!
//! The file is a cache of the topic. It is opened by one process at a time, and whatever goes wrong with it, it is opened
//! anew and its positions tell what is still to be applied.

mod columns;
mod encoding;
mod transaction;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use chrono::{DateTime, Utc};
use codec::headers::Headers;
use runtime::{Elapsed, timeout};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _, SqliteConnection,
    migrate::Migrator,
    query,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteRow, SqliteSynchronous},
};
use telemetry::metrics::{self, IntGauge};
use uuid::Uuid;

use self::encoding::{date_of, headers_of, year_of};
pub use self::transaction::{Delta, Remember, Transaction};
use crate::counts::Counts;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Time for one step of a transaction. A disk that takes longer is as good as none.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time to bring the tables of an older version up to date, when each patient may have to be written anew.
const MIGRATION_DEADLINE: Duration = Duration::from_secs(120);
/// Forwarded dead letters that are kept to be shown; the topic has them all.
const KEPT_DEAD_LETTERS: i64 = 1000;
/// The SQL of the bytes that a dead letter has. SQLite finds lengths without reading what they are of.
const LETTER_BYTES: &str = "coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0) + octet_length(headers)";
/// Pages of SQLite's log (4 KiB each) that are written back into the file together, with a wait for the disk. The same
/// pages change again and again, so a longer log writes less.
const LOG_PAGES: &str = "4000";

static WAITING: LazyLock<IntGauge> =
    LazyLock::new(|| metrics::gauge("dead_letters_waiting", "Dead letters that are not on their topic yet."));
static WAITING_BYTES: LazyLock<IntGauge> =
    LazyLock::new(|| metrics::gauge("dead_letters_waiting_bytes", "Bytes that they take in the state."));

/// The open state.
#[derive(Debug)]
pub struct State {
    connection: SqliteConnection,
    waiting: Waiting,
    /// The newest dead letter that is among those, or was.
    newest: i64,
}

/// Dead letters that are not on their topic yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many.
    pub letters: i64,
    /// Bytes of them all.
    pub bytes: i64,
}

/// What the file says when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The counts of everything applied.
    pub counts: Counts,
    /// The position of each partition that was ever read.
    pub positions: BTreeMap<i32, SavedPosition>,
}

/// Where a partition goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedPosition {
    /// The offset of the record that comes next.
    pub next: i64,
    /// The timestamp, in milliseconds, of the record before it.
    pub last_timestamp: Option<i64>,
    /// The id of the topic that it is an offset of, if that is known.
    pub topic_id: Option<Uuid>,
}

/// A record that is no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it was.
    pub partition: i32,
    /// Where it was.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Headers,
    /// Why it is none.
    pub error: String,
}

/// A dead letter in the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its number.
    pub id: i64,
    /// The record.
    pub letter: DeadLetter,
    /// When it was parked.
    pub at: DateTime<Utc>,
    /// Whether it is on the topic of dead letters.
    pub forwarded: bool,
}

/// A dead letter in the state without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedLetter {
    /// Its number.
    pub id: i64,
    /// Where the record was.
    pub partition: i32,
    /// Where the record was.
    pub offset: i64,
    /// Why it is no event.
    pub error: String,
    /// Bytes of its value.
    pub value_bytes: i64,
    /// When it was parked.
    pub at: DateTime<Utc>,
    /// Whether it is on the topic of dead letters.
    pub forwarded: bool,
}

/// The state cannot be used. It has to be opened anew.
#[derive(Debug)]
pub struct StateError(String);

impl StateError {
    /// That what the state has counted belongs to other instances as well.
    pub fn shared(partitions: &[i32]) -> Self {
        Self(format!(
            "it has counted partitions {partitions:?}, which PARTITIONS leaves to others: set PARTITIONS as before, or delete \
             the state to count the topic again"
        ))
    }

    /// That the topic has lost partitions, which none that stays the same one can.
    pub fn fewer_partitions(partitions: &[i32], count: i32) -> Self {
        Self(format!(
            "it has counted partitions {partitions:?}, and the topic, which was made anew, has {count}: delete the state to \
             count the topic again"
        ))
    }
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StateError {}

impl From<sqlx::Error> for StateError {
    fn from(error: sqlx::Error) -> Self {
        Self(match error {
            // SQLite's message names the file's trouble ("disk is full"), never a value.
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
    /// Opens the file, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be read and written, or another process has it open.
    pub async fn open(path: &Path) -> Result<(Self, Saved), StateError> {
        let failed = |error: StateError| StateError(format!("the state file {}: {error}", path.display()));
        Self::open_file(path).await.map_err(failed)
    }

    async fn open_file(path: &Path) -> Result<(Self, Saved), StateError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // After a power cut the last transactions may be missing, their positions with them.
            .synchronous(SqliteSynchronous::Normal)
            // Two processes that count the same events would count them twice.
            .locking_mode(SqliteLockingMode::Exclusive)
            .busy_timeout(Duration::from_secs(1))
            .pragma("wal_autocheckpoint", LOG_PAGES)
            .disable_statement_logging();
        let mut connection = timeout(DEADLINE, options.connect()).await??;
        let migrate = Box::pin(MIGRATIONS.run_direct(None, &mut connection, false));
        let migrated = timeout(MIGRATION_DEADLINE, migrate).await?;
        migrated.map_err(|error| StateError(format!("its schema: {error}")))?;
        let load = async {
            columns::prepare(&mut connection).await?;
            load(&mut connection).await
        };
        let saved = timeout(DEADLINE, Box::pin(load)).await??;
        let mut state = Self { connection, waiting: Waiting::default(), newest: 0 };
        state.count_waiting().await?;
        Ok((state, saved))
    }

    /// The dead letters that are not on their topic yet.
    pub fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// Counts the dead letters that were stored since they were counted last. To be called after each transaction with some.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn count_waiting(&mut self) -> Result<(), StateError> {
        let (new, newest) = self.waiting_of("id > ?", self.newest).await?;
        self.newest = newest.unwrap_or(self.newest);
        self.set_waiting(self.waiting.letters + new.letters, self.waiting.bytes + new.bytes);
        Ok(())
    }

    /// Those of the waiting letters that meet a condition, and the newest of them.
    async fn waiting_of(&mut self, condition: &'static str, id: i64) -> Result<(Waiting, Option<i64>), StateError> {
        let sql = format!(
            "-- count waiting dead letters
            SELECT count(*) AS letters, max(id) AS newest, coalesce(sum({LETTER_BYTES}), 0) AS bytes
            FROM dead_letters WHERE forwarded = 0 AND {condition}"
        );
        let count = query(AssertSqlSafe(sql)).bind(id);
        let row = timeout(DEADLINE, count.fetch_one(&mut self.connection)).await??;
        let waiting = Waiting { letters: row.try_get("letters")?, bytes: row.try_get("bytes")? };
        Ok((waiting, row.try_get("newest")?))
    }

    fn set_waiting(&mut self, letters: i64, bytes: i64) {
        self.waiting = Waiting { letters, bytes };
        WAITING.set(letters);
        WAITING_BYTES.set(bytes);
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// If the state cannot be used.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, StateError> {
        Ok(Transaction(timeout(DEADLINE, self.connection.begin()).await??))
    }

    /// The oldest dead letters that are not on their topic yet: so many, and of so many bytes, unless the first alone has
    /// more.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn waiting_dead_letters(&mut self, limit: i64, bytes: i64) -> Result<Vec<Parked>, StateError> {
        let sql = format!(
            "-- waiting dead letters
            SELECT * FROM dead_letters WHERE forwarded = 0 AND id <= (
                SELECT max(id) FROM (
                    SELECT id, row_number() OVER oldest AS number, sum({LETTER_BYTES}) OVER oldest AS bytes
                    FROM (SELECT * FROM dead_letters WHERE forwarded = 0 ORDER BY id LIMIT ?1)
                    WINDOW oldest AS (ORDER BY id)
                ) WHERE number = 1 OR bytes <= ?2
            ) ORDER BY id"
        );
        let find = query(AssertSqlSafe(sql)).bind(limit).bind(bytes);
        let rows = timeout(DEADLINE, find.fetch_all(&mut self.connection)).await??;
        rows.iter().map(parked).collect()
    }

    /// The newest dead letters before one of them.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn dead_letters(&mut self, before: i64, limit: i64) -> Result<Vec<ListedLetter>, StateError> {
        let find = query(
            "-- dead letters
            SELECT id, partition, \"offset\", error, value_bytes, parked_at, forwarded
            FROM dead_letters WHERE id < ? ORDER BY id DESC LIMIT ?",
        )
        .bind(before)
        .bind(limit);
        let rows = timeout(DEADLINE, find.fetch_all(&mut self.connection)).await??;
        rows.iter().map(listed).collect()
    }

    /// Says that dead letters are on their topic; forgets what is in them, and the oldest of those.
    ///
    /// # Errors
    /// If the state cannot be written: then they will be on it twice.
    pub async fn forwarded(&mut self, up_to: i64) -> Result<(), StateError> {
        let (done, _) = self.waiting_of("id <= ?", up_to).await?;
        let work = async {
            query(
                "-- dead letters forwarded
                UPDATE dead_letters SET forwarded = 1, key = NULL, value = NULL, headers = '[]'
                WHERE forwarded = 0 AND id <= ?",
            )
            .bind(up_to)
            .execute(&mut self.connection)
            .await?;
            query("-- forget dead letters\nDELETE FROM dead_letters WHERE forwarded = 1 AND id <= ? - ?")
                .bind(up_to)
                .bind(KEPT_DEAD_LETTERS)
                .execute(&mut self.connection)
                .await
        };
        timeout(DEADLINE, work).await??;
        self.set_waiting(self.waiting.letters - done.letters, self.waiting.bytes - done.bytes);
        Ok(())
    }

    /// Closes the file, with everything in it.
    pub async fn close(self) {
        // Everything that matters was committed.
        let _ = timeout(DEADLINE, self.connection.close()).await;
    }
}

async fn load(connection: &mut SqliteConnection) -> Result<Saved, sqlx::Error> {
    let mut saved = Saved::default();
    let counts = &mut saved.counts;
    for row in query("-- totals\nSELECT name, value FROM totals").fetch_all(&mut *connection).await? {
        let value: i64 = row.try_get("value")?;
        match row.try_get("name")? {
            "active" => counts.active = value,
            "created" => counts.created = value,
            "updated" => counts.updated = value,
            "deleted" => counts.deleted = value,
            "unknown" => counts.unknown = value,
            "last_event" => counts.last_event = DateTime::from_timestamp_millis(value),
            _ => {}
        }
    }
    for row in query("-- births\nSELECT year, patients FROM births").fetch_all(&mut *connection).await? {
        counts.births.insert(year_of(row.try_get("year")?), row.try_get("patients")?);
    }
    for row in query("-- registrations\nSELECT date, patients FROM registrations").fetch_all(&mut *connection).await? {
        counts.registrations.insert(date_of(row.try_get("date")?), row.try_get("patients")?);
    }
    let positions = query("-- positions\nSELECT partition, next, last_timestamp, topic_id FROM positions");
    for row in positions.fetch_all(connection).await? {
        let position = SavedPosition {
            next: row.try_get("next")?,
            last_timestamp: row.try_get("last_timestamp")?,
            topic_id: row.try_get::<Option<&[u8]>, _>("topic_id")?.and_then(|id| Uuid::from_slice(id).ok()),
        };
        saved.positions.insert(row.try_get("partition")?, position);
    }
    Ok(saved)
}

fn parked(row: &SqliteRow) -> Result<Parked, StateError> {
    Ok(Parked {
        id: row.try_get("id")?,
        letter: DeadLetter {
            partition: row.try_get("partition")?,
            offset: row.try_get("offset")?,
            key: row.try_get("key")?,
            value: row.try_get("value")?,
            headers: headers_of(row.try_get("headers")?),
            error: row.try_get("error")?,
        },
        at: DateTime::from_timestamp_millis(row.try_get("parked_at")?).unwrap_or_default(),
        forwarded: row.try_get("forwarded")?,
    })
}

fn listed(row: &SqliteRow) -> Result<ListedLetter, StateError> {
    Ok(ListedLetter {
        id: row.try_get("id")?,
        partition: row.try_get("partition")?,
        offset: row.try_get("offset")?,
        error: row.try_get("error")?,
        value_bytes: row.try_get("value_bytes")?,
        at: DateTime::from_timestamp_millis(row.try_get("parked_at")?).unwrap_or_default(),
        forwarded: row.try_get("forwarded")?,
    })
}

/// The state as its users share it: open or not, and opened anew after a failure.
#[derive(Debug)]
pub struct SharedState {
    path: PathBuf,
    open: smol::lock::Mutex<Option<State>>,
}

impl SharedState {
    /// A state in this file, not opened yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, open: smol::lock::Mutex::new(None) }
    }

    /// Opens it, closing it before if it was open.
    ///
    /// # Errors
    /// If it cannot be used.
    pub async fn open(&self) -> Result<Saved, StateError> {
        let mut open = self.open.lock().await;
        if let Some(state) = open.take() {
            state.close().await;
        }
        let (state, saved) = State::open(&self.path).await?;
        *open = Some(state);
        Ok(saved)
    }

    /// Does something with it.
    ///
    /// # Errors
    /// If it is not open, or the work fails.
    pub async fn with<T>(&self, work: impl AsyncFnOnce(&mut State) -> Result<T, StateError>) -> Result<T, StateError> {
        match self.open.lock().await.as_mut() {
            // Boxed, because the futures of a transaction are deep and large.
            Some(state) => Box::pin(work(state)).await,
            None => Err(StateError("the state is not open".to_owned())),
        }
    }

    /// Closes it.
    pub async fn close(&self) {
        if let Some(state) = self.open.lock().await.take() {
            state.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use chrono::NaiveDate;
    use sqlx::Executor as _;
    use testbed::Scratch;

    use super::*;
    use crate::counts::PatientState;

    #[test]
    fn a_state_of_the_first_schema_goes_on() {
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
                INSERT INTO totals (name, value) VALUES ('created', 2)";
            old.execute(fill).await.unwrap();
            old.close().await.unwrap();

            let (mut state, saved) = State::open(&file).await.unwrap();
            let position = SavedPosition { next: 7, last_timestamp: Some(8), topic_id: None };
            assert_eq!(saved.positions, BTreeMap::from([(1, position)]));
            assert_eq!(saved.counts, Counts { created: 2, ..Counts::default() });
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
                    },
                ),
                (u128::MAX, PatientState::default()),
                (
                    2,
                    PatientState {
                        version: 3,
                        active: false,
                        birth_year: Some(-44),
                        registered: date("2024-02-29"),
                        changed: None,
                    },
                ),
            ];
            let expected = expected.map(|(id, known)| (Uuid::from_u128(id), known));
            let mut transaction = state.begin().await.unwrap();
            assert_eq!(transaction.known(&expected.map(|(id, _)| id)).await.unwrap(), expected.into());
        });
    }

    #[test]
    fn dead_letters_are_taken_by_their_bytes() {
        let directory = Scratch::new().unwrap();
        smol::block_on(async {
            let (mut state, _) = State::open(&directory.path().join("state.sqlite")).await.unwrap();
            let letter = |(offset, bytes): (i64, usize)| DeadLetter {
                partition: 0,
                offset,
                key: None,
                value: Some(vec![0; bytes]),
                headers: Headers::new(),
                error: String::new(),
            };
            let dead_letters = (0..).zip([900, 10, 10, 900, 10]).map(letter).collect();
            let commit = Delta { dead_letters, ..Delta::default() };
            state.begin().await.unwrap().commit(&commit).await.unwrap();
            state.count_waiting().await.unwrap();
            // Headers take two bytes if there are none.
            assert_eq!(state.waiting(), Waiting { letters: 5, bytes: 900 * 2 + 10 * 3 + 5 * 2 });
            for (limit, bytes, expected) in [(20, 1, 1), (20, 1000, 3), (2, 1000, 2), (20, 10_000, 5)] {
                let waiting = state.waiting_dead_letters(limit, bytes).await.unwrap();
                let offsets: Vec<_> = waiting.iter().map(|parked| parked.letter.offset).collect();
                assert_eq!(offsets, (0..expected).collect::<Vec<_>>(), "{limit} of {bytes} bytes");
            }
            state.forwarded(3).await.unwrap();
            let waiting = state.waiting_dead_letters(20, 1).await.unwrap();
            assert_eq!(waiting.iter().map(|parked| parked.letter.offset).collect::<Vec<_>>(), [3]);
            let listed = state.dead_letters(i64::MAX, 2).await.unwrap();
            assert_eq!(listed.iter().map(|letter| letter.value_bytes).collect::<Vec<_>>(), [10, 900]);
            let after = Waiting { letters: 2, bytes: 900 + 10 + 2 * 2 };
            assert_eq!(state.waiting(), after);
            state.close().await;
            let (mut state, _) = State::open(&directory.path().join("state.sqlite")).await.unwrap();
            assert_eq!(state.waiting(), after, "it is counted anew when the file is opened");
            let listed = state.dead_letters(i64::MAX, 9).await.unwrap();
            assert_eq!(listed.iter().map(|letter| letter.value_bytes).collect::<Vec<_>>(), [10, 900, 10, 10, 900]);
            let kept = "SELECT sum(octet_length(value)) FROM dead_letters";
            let kept: i64 = sqlx::query_scalar(kept).fetch_one(&mut state.connection).await.unwrap();
            assert_eq!(kept, 910, "the content of those that were forwarded is on their topic alone");
        });
    }
}
