//! Checks that the tests in ARCHITECTURE.md, and the files that documents link to, exist.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{root, sources};

/// The folders with code and documents.
const FOLDERS: [&str; 5] = ["apps", "docs", "libs", "tests", "tools"];

#[test]
fn every_invariant_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = page.split_once("| what always holds | what holds it |\n").unwrap();
    let rows: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 30, "the table has too few rows");
    let defined: BTreeSet<String> = files(|file| file.ends_with(".rs"))
        .flat_map(|file| {
            let text = fs::read_to_string(root().join(file)).unwrap();
            let names = text.lines().filter_map(|line| line.trim().trim_start_matches("async ").strip_prefix("fn "));
            names.map(|rest| rest.split(['(', '<']).next().unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    for row in rows {
        let held = row.trim_end_matches('|').rsplit(" | ").next().unwrap();
        // Names of tests have three words or more; the column also has settings of PostgreSQL.
        let tests = held.split('`').skip(1).step_by(2).filter(|name| is_name(name) && name.matches('_').count() > 1);
        for test in tests.filter(|name| !name.ends_with("_timeout")) {
            assert!(defined.contains(test), "{test} does not exist: {row}");
        }
    }
}

fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[test]
fn documents_link_to_files_that_exist() {
    let at_root = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned);
    let mut count = 0;
    for document in files(|file| file.ends_with(".md")).chain(at_root) {
        let text = fs::read_to_string(root().join(&document)).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(&document).parent().unwrap();
            let target = if path.is_empty() { root().join(&document) } else { root().join(folder).join(path) };
            assert!(target.exists(), "{document} links to {link}, which does not exist");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let is_target = |line: &str| line.starts_with('#') && self::anchor(line) == anchor;
                assert!(text.lines().any(is_target), "{document} links to {link}, where there is no such heading");
            }
            count += 1;
        }
    }
    assert!(count > 50, "too few links were found");
}

/// GitHub's anchor of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect()
}

/// The files in our folders with matching paths, relative to the root of the repository.
fn files(matches: impl Fn(&str) -> bool) -> impl Iterator<Item = String> {
    let all = FOLDERS.iter().flat_map(|folder| sources(&root().join(folder)));
    let paths = all.map(|file| file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
    paths.filter(move |path| matches(path) && !path.contains("/target/") && !path.contains("/."))
}
