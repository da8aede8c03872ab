//! Lists of patients: in an order, from a position on, perhaps only those that a search finds.
//!
//! A search has two ways. The index of the order, read until enough is found, is fast where many patients match; the index
//! of trigrams, which gives all that match to be sorted, is fast where few do. Each is hopeless in the other's place among
//! a million patients, and the planner cannot know which is which. So a search looks at a small part of the order first,
//! goes on with it if that was fruitful, and takes the trigrams otherwise.

use std::sync::Arc;

use postgres::{Error, PgRow, Row as _, query};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{Store, patient};
use crate::patient::Patient;

/// The columns of a patient.
const COLUMNS: &str = "id, name, email, address, date_of_birth, registered_date, version";
/// The searched text, as the index `patients_search` has it.
const SEARCHED: &str = r"(E'\x1f' || lower(name) || E'\x1f' || lower(email))";
/// How many patients of the order a search looks at first.
const FIRST_LOOK: i64 = 1_000;
/// How many it looks at if at least [`FRUITFUL`] of the first ones matched: then these should be enough for a list.
const SECOND_LOOK: i64 = 8_000;
const FRUITFUL: usize = 20;
/// Where the counting of what a search finds stops, because it costs the more the more there are.
const COUNTED: i64 = 10_000;

/// Which patients, in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The order.
    pub order: Order,
    /// Only these.
    pub search: Option<Search>,
    /// Where to begin.
    pub begin: Begin,
    /// How many at most.
    pub limit: i64,
}

/// Where a list begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At the first patient.
    First,
    /// After a place that an earlier list ended at. Costs the same wherever that is.
    After(Position),
    /// After this many patients. Costs more the more there are.
    Skip(i64),
}

/// A place in an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The text of the column that the order goes by.
    pub sort_key: String,
    /// Tells patients with equal columns apart.
    pub id: Uuid,
}

/// A patient in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The patient.
    pub patient: Patient,
    /// See [`Position::sort_key`].
    pub sort_key: String,
}

/// An order of patients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// By what.
    pub field: SortField,
    /// Which way.
    pub direction: Direction,
}

/// Which way an order goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
}

impl Direction {
    const fn sql(self) -> &'static str {
        match self {
            Self::Ascending => "ASC",
            Self::Descending => "DESC",
        }
    }

    /// How a later place compares with an earlier one.
    const fn later(self) -> &'static str {
        match self {
            Self::Ascending => ">",
            Self::Descending => "<",
        }
    }
}

/// What patients can be ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortField {
    /// The id: the order of registration.
    Id,
    /// The name.
    Name,
    /// The email, whatever its case.
    Email,
    /// The date of birth.
    DateOfBirth,
    /// The date of the registration.
    RegisteredDate,
}

impl SortField {
    /// What the index of the order is made on.
    const fn column(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Name => "name",
            Self::Email => "lower(email)",
            Self::DateOfBirth => "date_of_birth",
            Self::RegisteredDate => "registered_date",
        }
    }

    const fn cast(self) -> &'static str {
        match self {
            Self::Id => "uuid",
            Self::Name | Self::Email => "text",
            Self::DateOfBirth | Self::RegisteredDate => "date",
        }
    }
}

/// A search for a part of a name or an email, whatever its case. A term with three letters or digits in a row is found
/// anywhere; a shorter one at the beginning of words only, because trigrams find nothing else fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// With `LIKE`'s special characters escaped.
    escaped: String,
    anywhere: bool,
}

impl Search {
    /// A search for this term; none if it has no letter and no digit.
    pub fn new(term: &str) -> Option<Self> {
        let longest_run = term.split(|c: char| !c.is_alphanumeric()).map(|run| run.chars().count()).max();
        let longest_run = longest_run.filter(|&run| run > 0)?;
        let escaped = term.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
        Some(Self { escaped, anywhere: longest_run >= 3 })
    }

    /// What `$1` and `$2` of [`matches()`] are.
    fn patterns(&self) -> (String, Option<String>) {
        let Self { escaped, anywhere } = self;
        if *anywhere {
            (format!("%{escaped}%"), None)
        } else {
            (format!("%\u{1f}{escaped}%"), Some(format!("% {escaped}%")))
        }
    }
}

/// The condition of a search. The patterns are lowered by the database, which also lowered the searched text.
fn matches() -> String {
    format!("({SEARCHED} LIKE lower($1) OR {SEARCHED} LIKE lower($2))")
}

impl List {
    /// The condition that leaves out what comes before the beginning: `$3` and `$4` are the position.
    fn after(&self) -> String {
        let Order { field, direction } = self.order;
        match self.begin {
            Begin::First | Begin::Skip(_) => "true".to_owned(),
            Begin::After(_) => format!("({}, id) {} ($3::{}, $4)", field.column(), direction.later(), field.cast()),
        }
    }

    /// What to sort by so that the order's index serves.
    fn order_by(&self) -> String {
        let (column, direction) = (self.order.field.column(), self.order.direction.sql());
        format!("{column} {direction}, id {direction}")
    }

    fn position(&self) -> (Option<&str>, Option<Uuid>) {
        match &self.begin {
            Begin::After(Position { sort_key, id }) => (Some(sort_key), Some(*id)),
            Begin::First | Begin::Skip(_) => (None, None),
        }
    }

    fn skip(&self) -> i64 {
        match self.begin {
            Begin::Skip(patients) => patients,
            Begin::First | Begin::After(_) => 0,
        }
    }
}

impl Store {
    /// Patients in an order, from a position on.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn list(&self, list: &List) -> Result<Vec<Listed>, Error> {
        let Some(search) = &list.search else { return self.list_all(list).await };
        // Pages are counted, and the counting finds all that match anyway.
        if !matches!(list.begin, Begin::Skip(_)) {
            let (found, complete) = self.list_among(list, search, FIRST_LOOK).await?;
            if complete {
                return Ok(found);
            }
            if found.len() >= FRUITFUL {
                let (found, complete) = self.list_among(list, search, SECOND_LOOK).await?;
                if complete {
                    return Ok(found);
                }
            }
        }
        self.list_matching(list, search).await
    }

    /// By the order's index alone.
    async fn list_all(&self, list: &List) -> Result<Vec<Listed>, Error> {
        let (column, after, order_by) = (list.order.field.column(), list.after(), list.order_by());
        // Made of constants of this file alone, as each statement here. The first two parameters are those of a search.
        let part = format!("WHERE {after} ORDER BY {order_by} LIMIT $5 OFFSET $6");
        let part = match list.begin {
            // Those that are left out are passed over in the index alone, which holds their ids.
            Begin::Skip(_) => format!("WHERE id IN (SELECT id FROM patients {part}) ORDER BY {order_by}"),
            Begin::First | Begin::After(_) => part,
        };
        let statement: Arc<str> =
            Arc::from(format!("-- list patients\nSELECT {COLUMNS}, {column}::text AS sort_key FROM patients {part}"));
        let (sort_key, id) = list.position();
        let fetch = self.database.run_idempotent(async |connection| {
            let rows = query(AssertSqlSafe(statement))
                .bind(None::<&str>)
                .bind(None::<&str>)
                .bind(sort_key)
                .bind(id)
                .bind(list.limit)
                .bind(list.skip())
                .fetch_all(connection)
                .await?;
            rows.iter().map(listed).collect()
        });
        fetch.await
    }

    /// Those that match among the next `window` patients of the order; true if there is nothing more to be found: the
    /// list is full, or the order ends there.
    async fn list_among(&self, list: &List, search: &Search, window: i64) -> Result<(Vec<Listed>, bool), Error> {
        let (column, after, order_by) = (list.order.field.column(), list.after(), list.order_by());
        let matches = matches();
        let statement: Arc<str> = Arc::from(format!(
            "-- search patients in order
            WITH part AS MATERIALIZED (
                SELECT {COLUMNS} FROM patients WHERE {after} ORDER BY {order_by} LIMIT $6
            )
            SELECT found.*, looked_at FROM (SELECT count(*) AS looked_at FROM part) counted LEFT JOIN (
                SELECT {COLUMNS}, {column}::text AS sort_key FROM part WHERE {matches} ORDER BY {order_by} LIMIT $5
            ) found ON true"
        ));
        let ((sort_key, id), (first, second)) = (list.position(), search.patterns());
        let fetch = self.database.run_idempotent(async |connection| {
            let rows = query(AssertSqlSafe(statement))
                .bind(first)
                .bind(second)
                .bind(sort_key)
                .bind(id)
                .bind(list.limit)
                .bind(window)
                .fetch_all(connection)
                .await?;
            let looked_at: i64 = rows.first().map_or(Ok(0), |row| row.try_get("looked_at"))?;
            let mut found = Vec::new();
            for row in &rows {
                if row.try_get::<Option<Uuid>, _>("id")?.is_some() {
                    found.push(listed(row)?);
                }
            }
            let complete = looked_at < window || found.len() as i64 >= list.limit;
            Ok((found, complete))
        });
        fetch.await
    }

    /// By the index of trigrams.
    async fn list_matching(&self, list: &List, search: &Search) -> Result<Vec<Listed>, Error> {
        let (column, after, direction) = (list.order.field.column(), list.after(), list.order.direction.sql());
        let matches = matches();
        // No index has the order of a row, so that the planner does not read one in the hope of finding enough soon.
        let statement: Arc<str> = Arc::from(format!(
            "-- search patients
            SELECT {COLUMNS}, {column}::text AS sort_key FROM patients WHERE {matches} AND {after}
            ORDER BY ROW({column}, id) {direction} LIMIT $5 OFFSET $6"
        ));
        let ((sort_key, id), (first, second)) = (list.position(), search.patterns());
        let fetch = self.database.run_idempotent(async |connection| {
            let rows = query(AssertSqlSafe(statement))
                .bind(first)
                .bind(second)
                .bind(sort_key)
                .bind(id)
                .bind(list.limit)
                .bind(list.skip())
                .fetch_all(connection)
                .await?;
            rows.iter().map(listed).collect()
        });
        fetch.await
    }

    /// How many patients there are; with a search, how many it finds, counted up to 10000.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn count(&self, search: Option<&Search>) -> Result<i64, Error> {
        let count = self.database.run_idempotent(async |connection| match search.map(Search::patterns) {
            None => query("-- count patients\nSELECT count(*) FROM patients").fetch_one(connection).await?.try_get(0),
            Some((first, second)) => {
                let matches = matches();
                let statement = AssertSqlSafe(format!(
                    "-- count found patients
                    SELECT count(*) FROM (SELECT 1 FROM patients WHERE {matches} LIMIT $3) found"
                ));
                let count = query(statement).bind(first).bind(second).bind(COUNTED);
                count.fetch_one(connection).await?.try_get(0)
            }
        });
        count.await
    }
}

fn listed(row: &PgRow) -> Result<Listed, sqlx::Error> {
    Ok(Listed { patient: patient(row)?, sort_key: row.try_get("sort_key")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_a_pattern_that_trigrams_can_find() {
        let patterns = |term| Search::new(term).unwrap().patterns();
        assert_eq!(patterns("doe"), ("%doe%".to_owned(), None));
        assert_eq!(patterns("do"), ("%\u{1f}do%".to_owned(), Some("% do%".to_owned())));
        assert_eq!(patterns("d.o.e").0, "%\u{1f}d.o.e%");
        assert_eq!(patterns("100%_\\").0, r"%100\%\_\\%");
        assert_eq!(Search::new(" %_"), None);
    }
}
