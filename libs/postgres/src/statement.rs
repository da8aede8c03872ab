use sqlx::{Database, Postgres, SqlSafeStr, query::Query};
use telemetry::Span;

/// Name of a span until its first statement is known.
pub(crate) const DEFAULT_SPAN_NAME: &str = "PostgreSQL";

/// A statement. Its first line, `-- name`, is its name in traces and in the server's log: the first statement of a
/// piece of work names its span, each further one is an event of the span.
pub fn query<'q>(statement: impl SqlSafeStr) -> Query<'q, Postgres, <Postgres as Database>::Arguments> {
    let statement = statement.into_sql_str();
    Span::with_current(|span| {
        let name = name(statement.as_str());
        if span.name() == DEFAULT_SPAN_NAME {
            span.set("db.query.summary", name.to_owned());
            span.rename(|| name.to_owned());
        } else {
            span.event(name.to_owned());
        }
    });
    sqlx::query(statement)
}

fn name(statement: &str) -> &str {
    // The text of the statement itself is never put into a trace.
    statement.lines().next().and_then(|line| line.strip_prefix("--")).map_or("unnamed statement", str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_named_by_its_first_line() {
        assert_eq!(name("-- find patient\n   SELECT 1"), "find patient");
        assert_eq!(name("SELECT 'Jane'"), "unnamed statement");
        assert_eq!(name(""), "unnamed statement");
    }
}
