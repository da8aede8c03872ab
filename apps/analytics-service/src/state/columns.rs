//! Many rows in one statement, with one parameter for each column, as PostgreSQL's `unnest` of arrays.
//!
//! Binding a parameter costs SQLite more than the row it belongs to, and each statement is a round trip to SQLite's thread. So
//! a column is one blob of fixed-width values; the statement selects from [`ROWS`] and cuts out the value of each row.

use std::io::Write as _;

use sqlx::{Executor as _, Sqlite, SqliteConnection, query, query::Query, sqlite::SqliteArguments};

/// The largest number of rows of a statement. More are not faster, and take memory.
pub(super) const MAX_ROWS: usize = 4096;
/// Digits and sign of any `i64`.
const NUMBER_WIDTH: usize = 20;

/// The source to select from: row numbers `n` from 0, up to the number of rows `?1`.
pub(super) const ROWS: &str = "temp.numbers WHERE n < ?1";

/// A statement with bound parameters.
pub(super) type BoundStatement = Query<'static, Sqlite, SqliteArguments>;

/// Creates the temporary table of [`ROWS`], once for each connection.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    connection.execute("CREATE TEMP TABLE numbers (n INTEGER PRIMARY KEY)").await?;
    let fill = "WITH RECURSIVE up (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM up WHERE n + 1 < ?)
        INSERT INTO numbers SELECT n FROM up";
    query(fill).bind(MAX_ROWS as i64).execute(connection).await?;
    Ok(())
}

/// The SQL of a row's value in a column of [`bytes`].
pub(super) fn bytes_of(parameter: usize, width: usize) -> String {
    format!("substr(?{parameter}, n * {width} + 1, {width})")
}

/// The SQL of a row's value in a column of [`numbers`].
pub(super) fn number_of(parameter: usize) -> String {
    format!("CAST({} AS INTEGER)", bytes_of(parameter, NUMBER_WIDTH))
}

/// A column of byte strings.
pub(super) fn bytes<const WIDTH: usize>(values: impl Iterator<Item = [u8; WIDTH]>) -> Vec<u8> {
    values.flatten().collect()
}

/// A column of numbers, in decimal. SQLite has to parse them, so [`bytes`] are cheaper.
pub(super) fn numbers(numbers: impl ExactSizeIterator<Item = i64>) -> Vec<u8> {
    // CAST ignores the zero bytes after the digits.
    let mut column = vec![0; numbers.len() * NUMBER_WIDTH];
    for (mut cell, number) in column.chunks_exact_mut(NUMBER_WIDTH).zip(numbers) {
        write!(cell, "{number}").expect("the cell is wide enough");
    }
    column
}

/// Binds the number of rows, at most [`MAX_ROWS`], and the columns from `?2` on.
pub(super) fn bind<const COLUMNS: usize>(
    statement: &'static str,
    rows: usize,
    columns: [Vec<u8>; COLUMNS],
) -> BoundStatement {
    columns.into_iter().fold(query(statement).bind(rows as i64), BoundStatement::bind)
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, Row as _};

    use super::*;

    #[test]
    fn rows_survive_a_round_trip() {
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
