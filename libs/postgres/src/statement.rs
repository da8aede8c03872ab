use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
};

use sqlx::{Database, Postgres, SqlSafeStr, query::Query};
use telemetry::Span;

/// Name of a span until its first statement is known.
pub(crate) const DEFAULT_SPAN_NAME: &str = "PostgreSQL";

/// A statement. Its first line, `-- name`, is its name in traces and in the server's log: the first statement of a
/// piece of work names its span, each further one is an event of the span.
pub fn query<'q>(statement: impl SqlSafeStr) -> Query<'q, Postgres, <Postgres as Database>::Arguments> {
    let statement = statement.into_sql_str();
    let name = name(statement.as_str());
    CURRENT.set(StatementName::new(name));
    Span::with_current(|span| {
        if span.name() == DEFAULT_SPAN_NAME {
            span.set("db.query.summary", name.to_owned());
            span.rename(|| name.to_owned());
        } else {
            span.event(name.to_owned());
        }
    });
    sqlx::query(statement)
}

thread_local! {
    /// The last statement of the work that is being polled.
    static CURRENT: Cell<StatementName> = const { Cell::new(StatementName::NONE) };
}

/// The name of a statement, in a fixed space: every statement is remembered, in case it fails, and a span only if it is exported.
#[derive(Clone, Copy)]
pub(crate) struct StatementName {
    bytes: [u8; 48],
    length: usize,
}

impl StatementName {
    const NONE: Self = Self { bytes: [0; 48], length: 0 };

    fn new(name: &str) -> Self {
        let mut new = Self::NONE;
        new.length = name.floor_char_boundary(new.bytes.len());
        new.bytes[..new.length].copy_from_slice(&name.as_bytes()[..new.length]);
        new
    }

    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

/// Runs work, and returns the name of its last statement too.
pub(crate) async fn with_name<T>(work: impl Future<Output = T>) -> (T, StatementName) {
    let (mut work, mut last) = (pin!(work), StatementName::NONE);
    let result = poll_fn(|context| {
        let outer = CURRENT.replace(last);
        let polled = work.as_mut().poll(context);
        last = CURRENT.replace(outer);
        polled
    });
    (result.await, last)
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

    #[test]
    fn the_last_statement_of_work_is_known_whatever_is_polled_in_between() {
        let work = |first: &'static str, last: &'static str| {
            with_name(async move {
                let _ = query(first);
                smol::future::yield_now().await;
                let _ = query(last);
                smol::future::yield_now().await;
            })
        };
        let long: &str = "-- a name of more bytes than there is space for, with an ä in it";
        let both = smol::future::zip(work("-- one\n", "-- two\n"), work("-- three\n", long));
        let (((), first), ((), second)) = smol::block_on(both);
        assert_eq!(first.as_str(), "two");
        assert!(second.as_str().len() <= 48 && long.contains(second.as_str()), "{}", second.as_str());
    }
}
