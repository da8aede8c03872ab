//! Checks that the tests in docs/failures.md exist.

use std::fs;

use crate::root;

/// Faults that must have a row in the page, by a part of their text.
const FAULTS: &[&str] = &[
    "patient-service is killed at any instant",
    "between the broker's acknowledgement and the deletion",
    "analytics-service is killed",
    "billing-service is killed while it opens",
    "broker is unavailable at the start, dies, freezes",
    "partition leaders move",
    "billing is unavailable, slow",
    "PostgreSQL is killed, frozen, restarted",
    "every connection to PostgreSQL is in use",
    "holder of the relay's lease frozen and thawed",
    "topic is deleted and created again",
    "log of a partition loses its tail",
    "a value that is not an event",
    "an unrelated transaction stays open",
    "one `Idempotency-Key`",
    "open the account of one patient",
    "a slow head, a slow body",
    "2,000 idle connections",
    "a body that is too large",
    "two `Content-Length`s, a length and chunks",
    "SQL in every field",
    "SIGTERM with 100 requests in flight",
    "a handler panics",
    "disk of analytics' state file is full",
    "clock of one service is an hour off",
    "PostgreSQL's clock steps back or forward",
    "PostgreSQL is restored from a backup, fails over",
    "billing rejects a task for good",
    "more requests than can be handled",
];

#[test]
fn every_row_of_the_failures_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/failures.md")).unwrap();
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| fault ");
    let rows: Vec<&str> = page.lines().filter(is_row).collect();
    for fault in FAULTS.iter().copied() {
        assert!(
            rows.iter().any(|row| row[..row.find(" | ").unwrap()].contains(fault)),
            "there is no row for {fault:?}"
        );
    }
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{row}");
        let tests: Vec<&str> = cells[4].split('`').filter(|name| name.contains("::")).collect();
        assert!(!tests.is_empty(), "no test is named: {row}");
        for name in tests {
            let (file, test) = name.split_once("::").unwrap();
            let source = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(is_test(&source, test), "{name} is no test");
        }
    }
}

/// The macros that run the tests in their list on several brokers.
const EACH: [&str; 3] = ["on_each_broker!(", "on_each_kafka!(", "on_each_version!("];

/// Whether a file has a test with this name: a function with `#[test]`, or one in the list of such a macro.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let defined = lines.iter().position(|line| line.starts_with(&format!("fn {name}(")));
    let marked = defined.is_some_and(|line| {
        lines[..line].iter().rev().take_while(|line| !line.is_empty()).any(|line| *line == "#[test]")
    });
    let on_each = EACH.iter().flat_map(|each| source.split(each).skip(1)).any(|rest| {
        let listed = rest.split(')').next().unwrap_or_default();
        listed.split(',').any(|listed| listed.trim() == name)
    });
    defined.is_some() && (marked || on_each)
}

#[test]
fn a_test_is_distinguished_from_another_function() {
    let source = "on_each_broker!(one,\n two);\nfn one(kind: Kind) {}\n\n#[test]\nfn three() {}\n\nfn four() {}\n\
        on_each_kafka!(five);\nfn five() {}\n";
    assert!(is_test(source, "one") && is_test(source, "three") && is_test(source, "five"));
    assert!(!is_test(source, "two") && !is_test(source, "four") && !is_test(source, "thre"));
}
