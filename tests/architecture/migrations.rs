//! Migrations that a running system survives: replicas of the version before go on while the next one starts, so that a
//! migration only adds (expand); what is no longer used is removed by a later release (contract), which says so.

use std::{fs, path::PathBuf};

use crate::{root, services, sources};

/// Statements that break a replica of the version before, or lock a table for as long as it is large.
const FORBIDDEN: [(&str, &str); 9] = [
    ("DROP TABLE", "replicas of the version before still use it"),
    ("DROP COLUMN", "replicas of the version before still use it"),
    ("RENAME", "replicas of the version before know the old name alone"),
    (" TYPE ", "it may rewrite the table under an exclusive lock; add a column instead"),
    ("SET NOT NULL", "it reads the whole table under an exclusive lock; add a CHECK ... NOT VALID and validate it"),
    ("TRUNCATE", "it deletes what replicas of the version before have written"),
    ("LOCK TABLE", "everybody waits"),
    ("VACUUM FULL", "everybody waits"),
    ("CLUSTER ", "everybody waits"),
];
/// The comment with which a migration says that a release in between has stopped using what it removes.
const CONTRACT: &str = "-- contract:";

#[test]
fn migrations_only_add() {
    let mut count = 0;
    for migration in migrations() {
        count += 1;
        let text = fs::read_to_string(&migration).unwrap();
        let wrong = wrong(&text);
        assert!(wrong.is_empty(), "{}: {}", migration.display(), wrong.join("; "));
    }
    assert!(count >= 3, "are migrations somewhere else now?");
}

#[test]
fn what_would_break_a_running_system_is_found() {
    assert!(wrong("CREATE TABLE t (id bigint);\nCREATE INDEX i ON t (id);").is_empty());
    assert!(wrong("-- DROP TABLE t is for later\nALTER TABLE t ADD COLUMN c text;").is_empty());
    assert_eq!(wrong("ALTER TABLE t DROP COLUMN c, ALTER b SET NOT NULL;").len(), 2);
    assert_eq!(wrong("alter table t add column c text not null;").len(), 1, "rows that are there have none");
    assert!(wrong("ALTER TABLE t ADD COLUMN c text NOT NULL DEFAULT '';").is_empty());
    assert_eq!(wrong("CREATE INDEX i ON old (id);").len(), 1, "writers wait until it is built");
    assert!(wrong("CREATE INDEX CONCURRENTLY i ON old (id);").is_empty());
    assert!(wrong("-- contract: unused since 0.2\nDROP TABLE t;").is_empty());
}

/// What of a migration breaks the rules, with reasons.
fn wrong(text: &str) -> Vec<String> {
    if text.contains(CONTRACT) {
        return Vec::new();
    }
    let code: Vec<_> = text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let code = code.join(" ").to_uppercase();
    let mut wrong = Vec::new();
    for statement in code.split(';') {
        let words: Vec<_> = statement.split_whitespace().collect();
        let statement = format!("{} ", words.join(" "));
        if !statement.starts_with("CREATE TABLE") {
            let found = FORBIDDEN.iter().filter(|(text, _)| statement.contains(text));
            wrong.extend(found.map(|(text, why)| format!("{}: {why}", text.trim())));
        }
        if statement.contains("ADD COLUMN") && statement.contains("NOT NULL") && !statement.contains("DEFAULT") {
            wrong.push("ADD COLUMN ... NOT NULL without DEFAULT: rows that are there have no value".to_owned());
        }
        // An index of a table that this migration makes is built on nothing.
        let table = words.iter().position(|word| *word == "ON").and_then(|at| words.get(at + 1));
        let is_new = |table: &&str| {
            let name = table.split('(').next().unwrap_or_default();
            ["", "IF NOT EXISTS "].iter().any(|between| {
                let made = format!("CREATE TABLE {between}{name}");
                code.split(';').any(|one| one.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(&made))
            })
        };
        if words.first() == Some(&"CREATE")
            && words.contains(&"INDEX")
            && !words.contains(&"CONCURRENTLY")
            && !table.as_ref().is_some_and(|table| is_new(table))
        {
            wrong.push("CREATE INDEX without CONCURRENTLY on a table that may be large: writers wait".to_owned());
        }
    }
    wrong
}

/// Those of PostgreSQL: analytics' SQLite file belongs to one process.
fn migrations() -> Vec<PathBuf> {
    let folders = services().into_iter().filter(|service| service != "analytics-service");
    let folders = folders.map(|service| root().join("apps").join(service).join("migrations"));
    folders.filter(|folder| folder.is_dir()).flat_map(|folder| sources(&folder)).collect()
}
