//! Checks that docs/observability.md has every metric of the services with its labels, and no other.

use std::{collections::BTreeSet, fs};

use crate::{root, sources};

/// The functions that make a metric, and whether they take labels.
const CONSTRUCTORS: [(&str, bool); 5] = [
    ("metrics::counter(", false),
    ("metrics::counters(", true),
    ("metrics::gauge(", false),
    ("metrics::gauges(", true),
    ("metrics::latencies(", true),
];

#[test]
fn every_metric_is_described_with_its_labels() {
    let mut declared = BTreeSet::new();
    for folder in ["apps", "libs"] {
        for file in sources(&root().join(folder)) {
            let is_rust = file.extension().is_some_and(|extension| extension == "rs");
            let path = file.strip_prefix(root()).unwrap();
            if is_rust && path.iter().any(|part| part == "src") {
                declared.extend(declared_in(&fs::read_to_string(&file).unwrap()));
            }
        }
    }
    assert!(declared.len() > 40, "too few metrics were found");
    let described = described_in(&fs::read_to_string(root().join("docs/observability.md")).unwrap());
    let missing: Vec<_> = declared.difference(&described).collect();
    assert!(missing.is_empty(), "docs/observability.md has no {missing:?}");
    let unknown: Vec<_> = described.difference(&declared).collect();
    assert!(unknown.is_empty(), "docs/observability.md has {unknown:?}, which no service exposes");
}

#[test]
fn metrics_are_found_with_their_labels() {
    let code = "metrics::counter(\"a_total\", \"Help.\");\nmetrics::gauges(\n    \"b\",\n    \"Help.\",\n    &[\"x\", \"y\"],\n)\n\
        \n#[cfg(test)]\nmod tests { fn f() { metrics::gauge(\"c\", \"Help.\"); } }";
    assert_eq!(declared_in(code), ["a_total", "b{x,y}"]);
    let page = "`not_here`\n## Metrics\n\n| every service | |\n|---|---|\n| `a_total`, `b{x,y}` | with `c` |\n";
    assert_eq!(described_in(page), BTreeSet::from(["a_total".to_owned(), "b{x,y}".to_owned()]));
}

/// The metrics that the code makes, as the page writes them: `name{label,label}`. Those of unit tests are left out.
fn declared_in(text: &str) -> Vec<String> {
    let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut found = Vec::new();
    for (constructor, has_labels) in CONSTRUCTORS {
        for call in code.split(constructor).skip(1) {
            let name = call.split('"').nth(1).unwrap();
            let array = call.split_once("&[").filter(|_| has_labels).map_or("", |(_, rest)| rest);
            let array = array.split(']').next().unwrap_or_default();
            let labels: Vec<&str> = array.split('"').skip(1).step_by(2).collect();
            found.push(if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) });
        }
    }
    found
}

/// The metrics in the first column of the tables.
fn described_in(page: &str) -> BTreeSet<String> {
    let (_, section) = page.split_once("## Metrics\n").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}
