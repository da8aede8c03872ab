//! Lists patients: in an order, from a position on, optionally with a search.
//!
//! A search has two possible plans. Scanning the index of the order until enough patients are found is fast if many match;
//! the trigram index, which finds all that match to be sorted, is fast if few do. Among a million patients each is very slow
//! in the other's place, and the planner cannot know which applies. So a search scans a small part of the order first, scans
//! a larger part if that found many, and uses the trigram index otherwise.

use std::sync::Arc;

use postgres::{Error, PgRow, Row as _, query};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{Store, patient};
use crate::patient::Patient;

/// The columns of a patient.
const COLUMNS: &str = "id, name, email, address, date_of_birth, registered_date, version";
/// The searched text, as it is in the index `patients_search`.
const SEARCHED: &str = r"(E'\x1f' || lower(name) || E'\x1f' || lower(email))";
/// Patients of the order that a search scans first.
const FIRST_SCAN: i64 = 1_000;
/// Patients that it scans if at least [`MIN_MATCHES`] of the first ones matched: these should be enough for a list.
const SECOND_SCAN: i64 = 8_000;
const MIN_MATCHES: usize = 20;
/// Most matches of a search that are counted, because counting costs time for each.
const MAX_COUNT: i64 = 10_000;

/// A query for a list of patients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The order.
    pub order: Order,
    /// Only patients that match.
    pub search: Option<Search>,
    /// Where it begins.
    pub begin: Begin,
    /// Maximum number of patients.
    pub limit: i64,
}

/// Where a list begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At the first patient.
    First,
    /// After the position of an earlier list's last patient; at the same cost for every position.
    After(Position),
    /// After this many patients; each costs time.
    Offset(i64),
}

/// A position in an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The value of the sort column, as text.
    pub sort_key: String,
    /// Distinguishes patients with equal values.
    pub id: Uuid,
}

/// A patient in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPatient {
    /// The patient.
    pub patient: Patient,
    /// See [`Position::sort_key`].
    pub sort_key: String,
}

/// An order of patients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The field to sort by.
    pub field: SortField,
    /// The direction.
    pub direction: Direction,
}

/// The direction of an order.
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

    /// The operator that is true for a later position and an earlier one.
    const fn later(self) -> &'static str {
        match self {
            Self::Ascending => ">",
            Self::Descending => "<",
        }
    }
}

/// The fields that patients can be sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortField {
    /// The id: the order of registration.
    Id,
    /// The name.
    Name,
    /// The email, case-insensitively.
    Email,
    /// The date of birth.
    DateOfBirth,
    /// The date of the registration.
    RegisteredDate,
}

impl SortField {
    /// The indexed expression.
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

/// A case-insensitive search for a part of a name or an email. A term with three consecutive letters or digits is found
/// anywhere; a shorter one only at the beginning of words, because trigrams cannot find anything else quickly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// With `LIKE`'s special characters escaped.
    escaped: String,
    anywhere: bool,
}

impl Search {
    /// A search for this term; none if it has neither letters nor digits.
    pub fn new(term: &str) -> Option<Self> {
        let longest_run = term.split(|c: char| !c.is_alphanumeric()).map(|run| run.chars().count()).max();
        let longest_run = longest_run.filter(|&run| run > 0)?;
        let escaped = term.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
        Some(Self { escaped, anywhere: longest_run >= 3 })
    }

    /// The parameters `$1` and `$2` of [`matches()`].
    fn patterns(&self) -> (String, Option<String>) {
        let Self { escaped, anywhere } = self;
        if *anywhere {
            (format!("%{escaped}%"), None)
        } else {
            (format!("%\u{1f}{escaped}%"), Some(format!("% {escaped}%")))
        }
    }
}

/// The condition of a search. The database lowers the patterns, as it does the indexed text.
fn matches() -> String {
    format!("({SEARCHED} LIKE lower($1) OR {SEARCHED} LIKE lower($2))")
}

impl List {
    /// The condition for patients after the position (`$3` and `$4`).
    fn after(&self) -> String {
        let Order { field, direction } = self.order;
        match self.begin {
            Begin::First | Begin::Offset(_) => "true".to_owned(),
            Begin::After(_) => format!("({}, id) {} ($3::{}, $4)", field.column(), direction.later(), field.cast()),
        }
    }

    /// The `ORDER BY` that the order's index supports.
    fn order_by(&self) -> String {
        let (column, direction) = (self.order.field.column(), self.order.direction.sql());
        format!("{column} {direction}, id {direction}")
    }

    fn position(&self) -> (Option<&str>, Option<Uuid>) {
        match &self.begin {
            Begin::After(Position { sort_key, id }) => (Some(sort_key), Some(*id)),
            Begin::First | Begin::Offset(_) => (None, None),
        }
    }

    fn offset(&self) -> i64 {
        match self.begin {
            Begin::Offset(patients) => patients,
            Begin::First | Begin::After(_) => 0,
        }
    }
}

impl Store {
    /// Lists patients.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list(&self, list: &List) -> Result<Vec<ListedPatient>, Error> {
        let Some(search) = &list.search else { return self.list_all(list).await };
        // Pages are counted too, which finds all matches anyway.
        if !matches!(list.begin, Begin::Offset(_)) {
            let (found, complete) = self.list_among(list, search, FIRST_SCAN).await?;
            if complete {
                return Ok(found);
            }
            if found.len() >= MIN_MATCHES {
                let (found, complete) = self.list_among(list, search, SECOND_SCAN).await?;
                if complete {
                    return Ok(found);
                }
            }
        }
        self.list_matching(list, search).await
    }

    /// By the order's index, without a search.
    async fn list_all(&self, list: &List) -> Result<Vec<ListedPatient>, Error> {
        let (column, after, order_by) = (list.order.field.column(), list.after(), list.order_by());
        // Made of constants of this file only, like each statement here. The first two parameters are those of a search.
        let part = format!("WHERE {after} ORDER BY {order_by} LIMIT $5 OFFSET $6");
        let part = match list.begin {
            // The skipped patients are read from the index only, which has their ids.
            Begin::Offset(_) => format!("WHERE id IN (SELECT id FROM patients {part}) ORDER BY {order_by}"),
            Begin::First | Begin::After(_) => part,
        };
        let statement: Arc<str> =
            Arc::from(format!("-- list patients\nSELECT {COLUMNS}, {column}::text AS sort_key FROM patients {part}"));
        self.fetch(list, statement, None).await
    }

    /// Matches among the next `window` patients of the order; true if the list is complete: it is full, or the order ends
    /// there.
    async fn list_among(&self, list: &List, search: &Search, window: i64) -> Result<(Vec<ListedPatient>, bool), Error> {
        let (column, after, order_by) = (list.order.field.column(), list.after(), list.order_by());
        let matches = matches();
        let statement: Arc<str> = Arc::from(format!(
            "-- search patients in order
            WITH part AS MATERIALIZED (
                SELECT {COLUMNS} FROM patients WHERE {after} ORDER BY {order_by} LIMIT $6
            )
            SELECT found.*, scanned FROM (SELECT count(*) AS scanned FROM part) counted LEFT JOIN (
                SELECT {COLUMNS}, {column}::text AS sort_key FROM part WHERE {matches} ORDER BY {order_by} LIMIT $5
            ) found ON true"
        ));
        let ((sort_key, id), (first, second)) = (list.position(), search.patterns());
        let fetch = self.database.read(async |connection| {
            let rows = query(AssertSqlSafe(statement))
                .bind(first)
                .bind(second)
                .bind(sort_key)
                .bind(id)
                .bind(list.limit)
                .bind(window)
                .fetch_all(connection)
                .await?;
            let scanned: i64 = rows.first().map_or(Ok(0), |row| row.try_get("scanned"))?;
            let mut found = Vec::new();
            for row in &rows {
                if row.try_get::<Option<Uuid>, _>("id")?.is_some() {
                    found.push(listed(row)?);
                }
            }
            let complete = scanned < window || found.len() as i64 >= list.limit;
            Ok((found, complete))
        });
        fetch.await
    }

    /// By the trigram index.
    async fn list_matching(&self, list: &List, search: &Search) -> Result<Vec<ListedPatient>, Error> {
        let (column, after, direction) = (list.order.field.column(), list.after(), list.order.direction.sql());
        let matches = matches();
        // No index supports the order of a ROW, so the planner cannot choose to scan one in the hope of early matches.
        let statement: Arc<str> = Arc::from(format!(
            "-- search patients
            SELECT {COLUMNS}, {column}::text AS sort_key FROM patients WHERE {matches} AND {after}
            ORDER BY ROW({column}, id) {direction} LIMIT $5 OFFSET $6"
        ));
        self.fetch(list, statement, Some(search)).await
    }

    async fn fetch(
        &self,
        list: &List,
        statement: Arc<str>,
        search: Option<&Search>,
    ) -> Result<Vec<ListedPatient>, Error> {
        let ((first, second), (sort_key, id)) = (search.map(Search::patterns).unzip(), list.position());
        let fetch = self.database.read(async |connection| {
            let rows = query(AssertSqlSafe(statement))
                .bind(first)
                .bind(second.flatten())
                .bind(sort_key)
                .bind(id)
                .bind(list.limit)
                .bind(list.offset())
                .fetch_all(connection)
                .await?;
            rows.iter().map(listed).collect()
        });
        fetch.await
    }

    /// Counts all patients, or those that match a search, up to 10000.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn count(&self, search: Option<&Search>) -> Result<i64, Error> {
        let count = self.database.read(async |connection| match search.map(Search::patterns) {
            None => query("-- count patients\nSELECT count(*) FROM patients").fetch_one(connection).await?.try_get(0),
            Some((first, second)) => {
                let matches = matches();
                let statement = AssertSqlSafe(format!(
                    "-- count matching patients
                    SELECT count(*) FROM (SELECT 1 FROM patients WHERE {matches} LIMIT $3) found"
                ));
                let count = query(statement).bind(first).bind(second).bind(MAX_COUNT);
                count.fetch_one(connection).await?.try_get(0)
            }
        });
        count.await
    }
}

fn listed(row: &PgRow) -> Result<ListedPatient, sqlx::Error> {
    Ok(ListedPatient { patient: patient(row)?, sort_key: row.try_get("sort_key")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_a_pattern_that_the_trigram_index_supports() {
        let patterns = |term| Search::new(term).unwrap().patterns();
        assert_eq!(patterns("doe"), ("%doe%".to_owned(), None));
        assert_eq!(patterns("do"), ("%\u{1f}do%".to_owned(), Some("% do%".to_owned())));
        assert_eq!(patterns("d.o.e").0, "%\u{1f}d.o.e%");
        assert_eq!(patterns("100%_\\").0, r"%100\%\_\\%");
        assert_eq!(Search::new(" %_"), None);
    }
}
