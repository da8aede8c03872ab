//! Migrations are compatible with running replicas of the version before (expand and contract): a migration only adds, and a
//! later release, marked with a comment, removes what is no longer used.

use std::{fs, path::PathBuf};

use crate::{root, services, sources};

/// Statements that break replicas of the version before, or lock a table for a time that grows with its size.
const FORBIDDEN: [(&str, &str); 9] = [
    ("DROP TABLE", "replicas of the version before still use it"),
    ("DROP COLUMN", "replicas of the version before still use it"),
    ("RENAME", "replicas of the version before use the old name"),
    (" TYPE ", "it may rewrite the table under an exclusive lock; add a column instead"),
    ("SET NOT NULL", "it reads the whole table under an exclusive lock; add a CHECK ... NOT VALID and validate it"),
    ("TRUNCATE", "it deletes what replicas of the version before have written"),
    ("LOCK TABLE", "it blocks all other statements"),
    ("VACUUM FULL", "it blocks all other statements"),
    ("CLUSTER ", "it blocks all other statements"),
];
/// The comment in a migration that removes what a release in between has stopped using.
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
    assert!(count >= 3, "too few migrations were found");
}

#[test]
fn breaking_migrations_are_found() {
    assert!(wrong("CREATE TABLE t (id bigint);\nCREATE INDEX i ON t (id);").is_empty());
    assert!(wrong("-- DROP TABLE t is for later\nALTER TABLE t ADD COLUMN c text;").is_empty());
    assert_eq!(wrong("ALTER TABLE t DROP COLUMN c, ALTER b SET NOT NULL;").len(), 2);
    assert_eq!(wrong("alter table t add column c text not null;").len(), 1, "existing rows have no value");
    assert!(wrong("ALTER TABLE t ADD COLUMN c text NOT NULL DEFAULT '';").is_empty());
    assert_eq!(wrong("CREATE INDEX i ON old (id);").len(), 1, "writers wait until it is built");
    assert!(wrong("CREATE INDEX CONCURRENTLY i ON old (id);").is_empty());
    assert!(wrong("-- contract: unused since 0.2\nDROP TABLE t;").is_empty());
}

/// The violations of the rules in a migration, with reasons.
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
            wrong.push("ADD COLUMN ... NOT NULL without DEFAULT: existing rows have no value".to_owned());
        }
        // The table of a new index is empty if this migration creates it.
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

/// The migrations of PostgreSQL databases. Analytics' SQLite file has no other replicas.
fn migrations() -> Vec<PathBuf> {
    let folders = services().into_iter().filter(|service| service != "analytics-service");
    let folders = folders.map(|service| root().join("apps").join(service).join("migrations"));
    folders.filter(|folder| folder.is_dir()).flat_map(|folder| sources(&folder)).collect()
}
