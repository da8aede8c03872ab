//! Many rows as the values of one statement, a value for each column.
//!
//! Each value that is bound costs SQLite more than the row it belongs to, and each statement is a way to SQLite's own thread
//! and back. So a column is one value, in which each row has a place of the same width; the statement selects from [`ROWS`]
//! and cuts out what belongs to each number. PostgreSQL's arrays, unnested, are the same.

use std::io::Write as _;

use sqlx::{Executor as _, Sqlite, SqliteConnection, query, query::Query, sqlite::SqliteArguments};

/// Rows that one statement takes, at most. More at once are not faster, and take memory.
pub(super) const AT_ONCE: usize = 4096;
/// Digits and sign of any number.
const NUMBER_WIDTH: usize = 20;

/// What a statement selects from: the numbers of its rows, of which there are `?1`.
pub(super) const ROWS: &str = "temp.numbers WHERE n < ?1";

/// A statement with its values, ready to be executed.
pub(super) type Bound = Query<'static, Sqlite, SqliteArguments>;

/// Makes what [`ROWS`] selects from, for as long as the connection lasts.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    connection.execute("CREATE TEMP TABLE numbers (n INTEGER PRIMARY KEY)").await?;
    let fill = "WITH RECURSIVE up (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM up WHERE n + 1 < ?)
        INSERT INTO numbers SELECT n FROM up";
    query(fill).bind(AT_ONCE as i64).execute(connection).await?;
    Ok(())
}

/// The SQL of a row's bytes, so many, in a column that [`bytes`] has made.
pub(super) fn bytes_of(parameter: usize, width: usize) -> String {
    format!("substr(?{parameter}, n * {width} + 1, {width})")
}

/// The SQL of a row's number in a column that [`numbers`] has made.
pub(super) fn number_of(parameter: usize) -> String {
    format!("CAST({} AS INTEGER)", bytes_of(parameter, NUMBER_WIDTH))
}

/// A column of values that are bytes, each as many.
pub(super) fn bytes<const WIDTH: usize>(values: impl Iterator<Item = [u8; WIDTH]>) -> Vec<u8> {
    values.flatten().collect()
}

/// A column of numbers. SQLite has to read each of them, so that bytes, where they do, cost it less.
pub(super) fn numbers(numbers: impl ExactSizeIterator<Item = i64>) -> Vec<u8> {
    // A cast ends with the last digit.
    let mut column = vec![0; numbers.len() * NUMBER_WIDTH];
    for (mut place, number) in column.chunks_exact_mut(NUMBER_WIDTH).zip(numbers) {
        write!(place, "{number}").expect("the place is wide enough");
    }
    column
}

/// A statement for so many rows, at most [`AT_ONCE`], with their columns from `?2` on.
pub(super) fn bind<const COLUMNS: usize>(statement: &'static str, rows: usize, columns: [Vec<u8>; COLUMNS]) -> Bound {
    columns.into_iter().fold(query(statement).bind(rows as i64), Bound::bind)
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, Row as _};

    use super::*;

    #[test]
    fn rows_come_out_as_they_went_in() {
        let numbers_in = [0, -1, 7, i64::MIN, i64::MAX, -719_162];
        let bytes_in: Vec<[u8; 3]> = (0..numbers_in.len() as u8).map(|n| [n, 0, u8::MAX - n]).collect();
        let statement = format!("SELECT {}, {} FROM {ROWS} ORDER BY n", bytes_of(2, 3), number_of(3)).leak();
        let rows = smol::block_on(async {
            let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
            prepare(&mut connection).await.unwrap();
            let columns = [bytes(bytes_in.iter().copied()), numbers(numbers_in.into_iter())];
            bind(statement, numbers_in.len(), columns).fetch_all(&mut connection).await.unwrap()
        });
        let rows: Vec<([u8; 3], i64)> =
            rows.iter().map(|row| (row.get::<&[u8], _>(0).try_into().unwrap(), row.get(1))).collect();
        assert_eq!(rows, bytes_in.into_iter().zip(numbers_in).collect::<Vec<_>>());
    }
}
