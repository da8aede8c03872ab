use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use codec::headers::Headers;
use runtime::timeout;
use sqlx::{AssertSqlSafe, Connection as _, Row as _, query, sqlite::SqliteRow};
use telemetry::metrics::{self, IntGauge};

use super::{STEP_TIMEOUT, State, StateError, encoding::decode_headers};

/// Forwarded dead letters that are kept for the list; the dead letter topic has them all.
const KEPT_DEAD_LETTERS: i64 = 1000;
/// The SQL of a dead letter's size, with 100 bytes for what its row has beside texts and bytes: there may be millions without
/// content. SQLite knows lengths without reading the values.
const SIZE: &str = "100 + coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0) + octet_length(headers)
    + octet_length(error)";

static WAITING: LazyLock<IntGauge> =
    LazyLock::new(|| metrics::gauge("dead_letters_waiting", "Dead letters that are not on their topic yet."));
static WAITING_BYTES: LazyLock<IntGauge> =
    LazyLock::new(|| metrics::gauge("dead_letters_waiting_bytes", "Bytes that they take in the state."));

/// Dead letters in the state that are not on the dead letter topic yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitingDeadLetters {
    /// Their number.
    pub count: i64,
    /// Bytes of their rows.
    pub bytes: i64,
}

/// A record that cannot be decoded as an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The partition of the record.
    pub partition: i32,
    /// The offset of the record.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Headers,
    /// Why it cannot be decoded.
    pub error: String,
}

/// A dead letter in the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDeadLetter {
    /// Its id.
    pub id: i64,
    /// The dead letter.
    pub dead_letter: DeadLetter,
    /// When it was stored.
    pub stored_at: DateTime<Utc>,
    /// Whether it is on the dead letter topic.
    pub forwarded: bool,
}

/// A dead letter in the state without key, value and headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterSummary {
    /// Its id.
    pub id: i64,
    /// The partition of the record.
    pub partition: i32,
    /// The offset of the record.
    pub offset: i64,
    /// Why it cannot be decoded.
    pub error: String,
    /// Bytes of its value.
    pub value_bytes: i64,
    /// When it was stored.
    pub stored_at: DateTime<Utc>,
    /// Whether it is on the dead letter topic.
    pub forwarded: bool,
}

impl State {
    /// Dead letters that are not on the dead letter topic yet.
    pub fn waiting(&self) -> WaitingDeadLetters {
        self.waiting
    }

    /// Adds the dead letters that were stored since the last call to [`waiting`](Self::waiting). Call it after each transaction
    /// that stored some.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn count_new_dead_letters(&mut self) -> Result<(), StateError> {
        let (new, newest) = self.count_waiting("id > ?", self.newest_counted).await?;
        self.newest_counted = newest.unwrap_or(self.newest_counted);
        self.set_waiting(self.waiting.count + new.count, self.waiting.bytes + new.bytes);
        Ok(())
    }

    /// Counts all waiting dead letters anew, if what is known of their number may be wrong.
    async fn recount_waiting(&mut self) -> Result<(), StateError> {
        if self.must_recount {
            let (waiting, newest) = self.count_waiting("id > ?", 0).await?;
            self.newest_counted = newest.unwrap_or_default().max(self.newest_counted);
            self.set_waiting(waiting.count, waiting.bytes);
            self.must_recount = false;
        }
        Ok(())
    }

    /// Waiting dead letters that meet a condition, and the highest id.
    async fn count_waiting(
        &mut self,
        condition: &'static str,
        id: i64,
    ) -> Result<(WaitingDeadLetters, Option<i64>), StateError> {
        let sql = format!(
            "-- count waiting dead letters
            SELECT count(*) AS number, max(id) AS newest, coalesce(sum({SIZE}), 0) AS bytes
            FROM dead_letters WHERE forwarded = 0 AND {condition}"
        );
        let count = query(AssertSqlSafe(sql)).bind(id);
        let row = timeout(STEP_TIMEOUT, count.fetch_one(&mut self.connection)).await??;
        let waiting = WaitingDeadLetters { count: row.try_get("number")?, bytes: row.try_get("bytes")? };
        Ok((waiting, row.try_get("newest")?))
    }

    fn set_waiting(&mut self, count: i64, bytes: i64) {
        self.waiting = WaitingDeadLetters { count, bytes };
        WAITING.set(count);
        WAITING_BYTES.set(bytes);
    }

    /// The oldest dead letters that are not on the dead letter topic yet: at most `limit`, of at most `bytes` together unless
    /// the first alone has more.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn waiting_dead_letters(&mut self, limit: i64, bytes: i64) -> Result<Vec<StoredDeadLetter>, StateError> {
        self.recount_waiting().await?;
        let sql = format!(
            "-- waiting dead letters
            SELECT * FROM dead_letters WHERE forwarded = 0 AND id <= (
                SELECT max(id) FROM (
                    SELECT id, row_number() OVER oldest AS number, sum({SIZE}) OVER oldest AS bytes
                    FROM (SELECT * FROM dead_letters WHERE forwarded = 0 ORDER BY id LIMIT ?1)
                    WINDOW oldest AS (ORDER BY id)
                ) WHERE number = 1 OR bytes <= ?2
            ) ORDER BY id"
        );
        let find = query(AssertSqlSafe(sql)).bind(limit).bind(bytes);
        let rows = timeout(STEP_TIMEOUT, find.fetch_all(&mut self.connection)).await??;
        rows.iter().map(stored_dead_letter).collect()
    }

    /// The newest dead letters with ids below `before`. Reads no keys, values or headers, whatever their size.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn dead_letters(&mut self, before: i64, limit: i64) -> Result<Vec<DeadLetterSummary>, StateError> {
        let find = query(
            "-- dead letters
            SELECT id, partition, \"offset\", error, value_bytes, parked_at, forwarded
            FROM dead_letters WHERE id < ? ORDER BY id DESC LIMIT ?",
        )
        .bind(before)
        .bind(limit);
        let rows = timeout(STEP_TIMEOUT, find.fetch_all(&mut self.connection)).await??;
        rows.iter().map(summary).collect()
    }

    /// Marks the dead letters up to an id as forwarded, and deletes their content and the oldest of them, in one transaction.
    ///
    /// # Errors
    /// If the state cannot be written. They still wait and will be forwarded again, unless the transaction is committed after its time
    /// limit: [`waiting_dead_letters`](Self::waiting_dead_letters) finds out.
    pub async fn mark_forwarded(&mut self, up_to: i64) -> Result<(), StateError> {
        self.recount_waiting().await?;
        let (forwarded, _) = self.count_waiting("id <= ?", up_to).await?;
        self.must_recount = true;
        let work = async {
            let mut transaction = self.connection.begin().await?;
            query(
                "-- dead letters forwarded
                UPDATE dead_letters SET forwarded = 1, key = NULL, value = NULL, headers = '[]'
                WHERE forwarded = 0 AND id <= ?",
            )
            .bind(up_to)
            .execute(&mut *transaction)
            .await?;
            query("-- delete dead letters\nDELETE FROM dead_letters WHERE forwarded = 1 AND id <= ? - ?")
                .bind(up_to)
                .bind(KEPT_DEAD_LETTERS)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        };
        timeout(STEP_TIMEOUT, work).await??;
        self.must_recount = false;
        self.set_waiting(self.waiting.count - forwarded.count, self.waiting.bytes - forwarded.bytes);
        Ok(())
    }
}

fn stored_dead_letter(row: &SqliteRow) -> Result<StoredDeadLetter, StateError> {
    Ok(StoredDeadLetter {
        id: row.try_get("id")?,
        dead_letter: DeadLetter {
            partition: row.try_get("partition")?,
            offset: row.try_get("offset")?,
            key: row.try_get("key")?,
            value: row.try_get("value")?,
            headers: decode_headers(row.try_get("headers")?),
            error: row.try_get("error")?,
        },
        stored_at: DateTime::from_timestamp_millis(row.try_get("parked_at")?).unwrap_or_default(),
        forwarded: row.try_get("forwarded")?,
    })
}

fn summary(row: &SqliteRow) -> Result<DeadLetterSummary, StateError> {
    Ok(DeadLetterSummary {
        id: row.try_get("id")?,
        partition: row.try_get("partition")?,
        offset: row.try_get("offset")?,
        error: row.try_get("error")?,
        value_bytes: row.try_get("value_bytes")?,
        stored_at: DateTime::from_timestamp_millis(row.try_get("parked_at")?).unwrap_or_default(),
        forwarded: row.try_get("forwarded")?,
    })
}

#[cfg(test)]
mod tests {
    use sqlx::Executor as _;
    use testbed::Scratch;

    use super::*;
    use crate::state::Delta;

    fn dead_letter(offset: i64, value: Option<Vec<u8>>) -> DeadLetter {
        DeadLetter { partition: 0, offset, key: None, value, headers: Headers::new(), error: String::new() }
    }

    #[test]
    fn dead_letters_are_read_up_to_a_number_of_bytes() {
        let directory = Scratch::new().unwrap();
        smol::block_on(async {
            let (mut state, _) = State::open(&directory.path().join("state.sqlite")).await.unwrap();
            let dead_letters =
                (0..).zip([900, 10, 10, 900, 10]).map(|(offset, bytes)| dead_letter(offset, Some(vec![0; bytes])));
            let dead_letters = dead_letters.collect();
            let delta = Delta { dead_letters, ..Delta::default() };
            state.begin().await.unwrap().commit(&delta).await.unwrap();
            state.count_new_dead_letters().await.unwrap();
            // A row takes 100 bytes, and no headers two.
            assert_eq!(state.waiting(), WaitingDeadLetters { count: 5, bytes: 900 * 2 + 10 * 3 + 5 * 102 });
            for (limit, bytes, expected) in [(20, 1, 1), (20, 1300, 3), (2, 1300, 2), (20, 10_000, 5)] {
                let waiting = state.waiting_dead_letters(limit, bytes).await.unwrap();
                let offsets: Vec<_> = waiting.iter().map(|stored| stored.dead_letter.offset).collect();
                assert_eq!(offsets, (0..expected).collect::<Vec<_>>(), "{limit} of {bytes} bytes");
            }
            state.mark_forwarded(3).await.unwrap();
            let waiting = state.waiting_dead_letters(20, 1).await.unwrap();
            assert_eq!(waiting.iter().map(|stored| stored.dead_letter.offset).collect::<Vec<_>>(), [3]);
            let listed = state.dead_letters(i64::MAX, 2).await.unwrap();
            assert_eq!(listed.iter().map(|summary| summary.value_bytes).collect::<Vec<_>>(), [10, 900]);
            let after = WaitingDeadLetters { count: 2, bytes: 900 + 10 + 2 * 102 };
            assert_eq!(state.waiting(), after);
            state.close().await;
            let (mut state, _) = State::open(&directory.path().join("state.sqlite")).await.unwrap();
            assert_eq!(state.waiting(), after, "it is counted again when the file is opened");
            let listed = state.dead_letters(i64::MAX, 9).await.unwrap();
            assert_eq!(listed.iter().map(|summary| summary.value_bytes).collect::<Vec<_>>(), [10, 900, 10, 10, 900]);
            let kept = "SELECT sum(octet_length(value)) FROM dead_letters";
            let kept: i64 = sqlx::query_scalar(kept).fetch_one(&mut state.connection).await.unwrap();
            assert_eq!(kept, 910, "the content of forwarded ones is deleted");
        });
    }

    #[test]
    fn dead_letters_still_wait_if_the_oldest_cannot_be_deleted() {
        let directory = Scratch::new().unwrap();
        smol::block_on(async {
            let (mut state, _) = State::open(&directory.path().join("state.sqlite")).await.unwrap();
            let last = KEPT_DEAD_LETTERS + 1;
            let delta = Delta {
                dead_letters: (0..last).map(|offset| dead_letter(offset, Some(b"content".to_vec()))).collect(),
                ..Delta::default()
            };
            state.begin().await.unwrap().commit(&delta).await.unwrap();
            state.count_new_dead_letters().await.unwrap();
            let (counted, oldest) = (state.waiting(), state.waiting_dead_letters(20, i64::MAX).await.unwrap());
            let fail = "CREATE TEMP TRIGGER fail BEFORE DELETE ON main.dead_letters
                BEGIN SELECT raise(ABORT, 'as the test wants it'); END";
            state.connection.execute(fail).await.unwrap();
            let error = state.mark_forwarded(last).await.unwrap_err();
            assert!(error.to_string().contains("as the test wants it"), "{error}");
            assert_eq!(state.waiting(), counted);
            assert!(state.waiting_dead_letters(20, i64::MAX).await.unwrap() == oldest, "with their content");
            state.connection.execute("DROP TRIGGER fail").await.unwrap();
            state.mark_forwarded(last).await.unwrap();
            assert_eq!(state.waiting(), WaitingDeadLetters::default());
            assert!(state.waiting_dead_letters(20, i64::MAX).await.unwrap().is_empty());
        });
    }

    /// SQLite goes on with a COMMIT whose time limit has passed.
    #[test]
    fn dead_letters_that_were_marked_after_an_error_wait_no_longer() {
        let directory = Scratch::new().unwrap();
        smol::block_on(async {
            let (mut state, _) = State::open(&directory.path().join("state.sqlite")).await.unwrap();
            let delta =
                Delta { dead_letters: (0..3).map(|offset| dead_letter(offset, None)).collect(), ..Delta::default() };
            state.begin().await.unwrap().commit(&delta).await.unwrap();
            state.count_new_dead_letters().await.unwrap();
            let fail = "CREATE TEMP TRIGGER fail BEFORE UPDATE ON main.dead_letters
                BEGIN SELECT raise(ABORT, 'as the test wants it'); END";
            state.connection.execute(fail).await.unwrap();
            state.mark_forwarded(2).await.unwrap_err();
            state.connection.execute("DROP TRIGGER fail").await.unwrap();
            state.connection.execute("UPDATE dead_letters SET forwarded = 1 WHERE id <= 2").await.unwrap();
            assert_eq!(state.waiting_dead_letters(20, i64::MAX).await.unwrap().len(), 1);
            assert_eq!(state.waiting().count, 1);
            state.begin().await.unwrap().commit(&delta).await.unwrap();
            state.count_new_dead_letters().await.unwrap();
            assert_eq!(state.waiting().count, 4);
        });
    }

    #[test]
    fn dead_letters_without_content_count_for_what_their_rows_take() {
        let directory = Scratch::new().unwrap();
        smol::block_on(async {
            let (mut state, _) = State::open(&directory.path().join("state.sqlite")).await.unwrap();
            let pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
            let before: i64 = sqlx::query_scalar(pages).fetch_one(&mut state.connection).await.unwrap();
            let with_reason =
                |offset| DeadLetter { error: "it has no PatientEvent".to_owned(), ..dead_letter(offset, None) };
            let delta = Delta { dead_letters: (0..5_000).map(with_reason).collect(), ..Delta::default() };
            state.begin().await.unwrap().commit(&delta).await.unwrap();
            state.count_new_dead_letters().await.unwrap();
            let after: i64 = sqlx::query_scalar(pages).fetch_one(&mut state.connection).await.unwrap();
            let counted = state.waiting().bytes;
            assert!((after - before..3 * (after - before)).contains(&counted), "{counted} of {}", after - before);
        });
    }
}
