//! Many rows as the values of one statement, a value for each column.
//!
//! Each value that is bound costs SQLite more than the row it belongs to, and each statement is a way to SQLite's own thread
//! and back. So a column is one value, in which each row has a place of the same width; the statement selects from [`ROWS`]
//! and cuts out what belongs to each number. PostgreSQL's arrays, unnested, are the same.

use std::io::Write as _;

use sqlx::{Executor as _, Sqlite, SqliteConnection, query, query::Query, sqlite::SqliteArguments};
use uuid::Uuid;

/// Rows that one statement takes, at most. More at once are not faster, and take memory.
pub(super) const AT_ONCE: usize = 4096;
/// Digits and sign of any number.
const NUMBER_WIDTH: usize = 20;
const ID_WIDTH: usize = size_of::<Uuid>();

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

/// The SQL of a row's id in a column that [`ids`] has made.
pub(super) fn id(parameter: usize) -> String {
    format!("substr(?{parameter}, n * {ID_WIDTH} + 1, {ID_WIDTH})")
}

/// The SQL of a row's number in a column that [`numbers`] has made.
pub(super) fn number(parameter: usize) -> String {
    format!("CAST(substr(?{parameter}, n * {NUMBER_WIDTH} + 1, {NUMBER_WIDTH}) AS INTEGER)")
}

/// A column of ids.
pub(super) fn ids(ids: impl Iterator<Item = Uuid>) -> Vec<u8> {
    ids.flat_map(Uuid::into_bytes).collect()
}

/// A column of numbers.
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
        let ids_in: Vec<Uuid> = (0..numbers_in.len() as u128).map(|id| Uuid::from_u128(u128::MAX - id)).collect();
        let statement = format!("SELECT {}, {} FROM {ROWS} ORDER BY n", id(2), number(3)).leak();
        let rows = smol::block_on(async {
            let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
            prepare(&mut connection).await.unwrap();
            let columns = [ids(ids_in.iter().copied()), numbers(numbers_in.into_iter())];
            bind(statement, numbers_in.len(), columns).fetch_all(&mut connection).await.unwrap()
        });
        let rows: Vec<(Uuid, i64)> =
            rows.iter().map(|row| (Uuid::from_slice(row.get(0)).unwrap(), row.get(1))).collect();
        assert_eq!(rows, ids_in.into_iter().zip(numbers_in).collect::<Vec<_>>());
    }
}
