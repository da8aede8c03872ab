//! Several statements as one: SQLite's thread executes them one after the other, and only the last one's end is waited for.
//! Each way to that thread and back is two switches between threads, and costs more than a small statement.

use std::fmt::Write as _;

use sqlx::{
    Arguments as _, AssertSqlSafe, Encode, SqliteConnection, Type, query_with,
    sqlite::{Sqlite, SqliteArguments},
};

/// Statements with their values. In the text that SQLite gets, a value is named and not numbered (`$7`): SQLite counts a
/// statement's values up to its largest number, and sqlx binds as many.
#[derive(Default)]
pub(super) struct Script {
    sql: String,
    arguments: SqliteArguments,
    /// Values that the statements so far have.
    bound: usize,
}

impl Script {
    /// Adds a statement whose values are `?1`, `?2` and so on: of all that are bound, those that are bound after this call.
    pub(super) fn add(&mut self, statement: &str) {
        if !self.sql.is_empty() {
            self.sql.push_str(";\n");
        }
        let mut parts = statement.split('?');
        self.sql.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = part.split_at(digits);
            let number = number.parse().map_or(0, |number: usize| number + self.bound);
            // A string takes any write.
            let _ = write!(self.sql, "${number}{rest}");
        }
    }

    /// Binds the next values of the statement that was added last.
    pub(super) fn bind<const COUNT: usize, T>(&mut self, values: [T; COUNT]) -> Result<(), sqlx::Error>
    where
        T: for<'t> Encode<'t, Sqlite> + Type<Sqlite>,
    {
        for value in values {
            self.arguments.add(value).map_err(sqlx::Error::Encode)?;
            self.bound += 1;
        }
        Ok(())
    }

    /// Executes the statements, up to the first that fails.
    pub(super) async fn execute(self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        query_with(AssertSqlSafe(self.sql), self.arguments).execute(connection).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, Row as _, query};

    use super::*;

    #[test]
    fn each_statement_has_its_own_values_and_none_follows_one_that_fails() {
        smol::block_on(async {
            let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
            let mut script = Script::default();
            script.add("CREATE TABLE numbers (n INTEGER PRIMARY KEY, text TEXT)");
            script.execute(&mut connection).await.unwrap();
            let insert = "-- insert\nINSERT INTO numbers (text, n) VALUES (?2 || ?2, ?1)";
            for (last, expected) in [(12, [(11, "aa"), (12, "bb")].to_vec()), (11, [(11, "aa"), (12, "bb")].to_vec())] {
                let mut script = Script::default();
                for (n, text) in [(last - 1, "a"), (last, "b")] {
                    script.add(insert);
                    script.bind([n]).unwrap();
                    script.bind([text.to_owned()]).unwrap();
                }
                let executed = script.execute(&mut connection).await;
                assert_eq!(executed.is_ok(), last == 12);
                let rows =
                    query("SELECT n, text FROM numbers WHERE n > 10 ORDER BY n").fetch_all(&mut connection).await;
                let rows: Vec<(i64, String)> = rows.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
                assert_eq!(rows, expected.into_iter().map(|(n, text)| (n, text.to_owned())).collect::<Vec<_>>());
            }
        });
    }
}
