//! The cost of one operation, from reports of the load generator, as a table.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::load::figure;

/// The value of `--rate` for a closed loop, which finds the peak.
pub(crate) const PEAK: &str = "peak";
/// The operations, by their names in the load generator.
pub(crate) const ACTIONS: [&str; 3] = ["create", "update", "delete"];

/// The cost of one operation.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cost {
    pub(crate) action: String,
    /// The value of `--rate`.
    pub(crate) rate: String,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// By process.
    cpu_ms: BTreeMap<String, f64>,
    voluntary_switches: BTreeMap<String, f64>,
    /// By counter of PostgreSQL.
    counters: BTreeMap<String, f64>,
}

impl Cost {
    pub(crate) fn of(action: &str, rate: &str, report: &Json) -> Self {
        let count = figure(report, "/all/count");
        let of_processes = |field: &str, scale: f64| {
            let of =
                |process: &Json| Some((process["name"].as_str()?.to_owned(), process[field].as_f64()? * scale / count));
            report["processes"].as_array().into_iter().flatten().filter_map(of).collect()
        };
        let counters = report["counters"].as_object().into_iter().flatten();
        Self {
            action: action.to_owned(),
            rate: rate.to_owned(),
            per_second: figure(report, "/all/perSecond"),
            p50_ms: figure(report, "/all/p50Ms"),
            p99_ms: figure(report, "/all/p99Ms"),
            cpu_ms: of_processes("cpuSeconds", 1e3),
            voluntary_switches: of_processes("voluntarySwitches", 1.0),
            counters: counters.filter_map(|(name, growth)| Some((name.clone(), growth.as_f64()? / count))).collect(),
        }
    }
}

/// The costs, as a table in Markdown: a column for each operation and rate.
pub(crate) fn table(costs: &[Cost]) -> String {
    let mut text = "| each |".to_owned();
    // Writing to a string cannot fail.
    for Cost { action, rate, .. } in costs {
        let _ = write!(text, " {action}, {} |", if rate == PEAK { PEAK.to_owned() } else { format!("{rate}/s") });
    }
    text += &format!("\n|---|{}\n", "---:|".repeat(costs.len()));
    let mut row = |name: &str, digits: usize, value: &dyn Fn(&Cost) -> Option<f64>| {
        let _ = write!(text, "| {name} |");
        for cost in costs {
            let _ = match value(cost) {
                Some(value) => write!(text, " {value:.digits$} |"),
                None => write!(text, " |"),
            };
        }
        text += "\n";
    };
    row("a second", 0, &|cost| Some(cost.per_second));
    row("p50, ms", 2, &|cost| Some(cost.p50_ms));
    row("p99, ms", 2, &|cost| Some(cost.p99_ms));
    let services = |cost: &Cost| {
        let services = cost.cpu_ms.iter().filter(|(name, _)| name.ends_with("-service"));
        Some(services.map(|(_, ms)| ms).sum())
    };
    row("CPU of the services, ms", 3, &services);
    let all = |cost: &Cost| Some(cost.cpu_ms.iter().filter(|(name, _)| *name != "load").map(|(_, ms)| ms).sum());
    row("CPU with PostgreSQL and Kafka, ms", 3, &all);
    for name in names(costs, |cost| &cost.cpu_ms) {
        row(&format!("CPU of {name}, ms"), 3, &|cost| cost.cpu_ms.get(name).copied());
    }
    for name in names(costs, |cost| &cost.voluntary_switches) {
        row(&format!("voluntary switches of {name}"), 2, &|cost| cost.voluntary_switches.get(name).copied());
    }
    for name in names(costs, |cost| &cost.counters) {
        row(name, 2, &|cost| cost.counters.get(name).copied());
    }
    text
}

fn names(costs: &[Cost], of: fn(&Cost) -> &BTreeMap<String, f64>) -> Vec<&str> {
    let mut names: Vec<_> = costs.iter().flat_map(|cost| of(cost).keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Replaces of earlier costs those that were measured again.
pub(crate) fn merge(costs: &mut Vec<Cost>, new: Vec<Cost>) {
    for cost in new {
        match costs.iter_mut().find(|old| (&old.action, &old.rate) == (&cost.action, &cost.rate)) {
            Some(old) => *old = cost,
            None => costs.push(cost),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cost(rate: &str, switches: u64) -> Cost {
        let report = json!({
            "all": {"count": 200, "perSecond": 100.0, "p50Ms": 1.0, "p99Ms": 2.0},
            "processes": [
                {"name": "billing-service", "cpuSeconds": 0.1, "voluntarySwitches": switches},
                {"name": "postgresql", "cpuSeconds": 0.3, "voluntarySwitches": 0},
                {"name": "load", "cpuSeconds": 9.0, "voluntarySwitches": 0},
            ],
            "counters": {"transactions of lean_patients": 500.0},
        });
        Cost::of("create", rate, &report)
    }

    #[test]
    fn costs_are_of_one_operation() {
        let table = table(&[cost("100", 600), cost(PEAK, 100)]);
        for row in [
            "| each | create, 100/s | create, peak |",
            "| CPU of the services, ms | 0.500 | 0.500 |",
            "| CPU with PostgreSQL and Kafka, ms | 2.000 | 2.000 |",
            "| voluntary switches of billing-service | 3.00 | 0.50 |",
            "| transactions of lean_patients | 2.50 | 2.50 |",
        ] {
            assert!(table.lines().any(|line| line == row), "{row}: {table}");
        }
    }

    #[test]
    fn a_cost_that_was_measured_again_takes_the_place_of_the_old_one() {
        let mut costs = vec![cost("100", 600), cost("200", 600)];
        merge(&mut costs, vec![cost("200", 200), cost("400", 200)]);
        let switches: Vec<_> = costs.iter().map(|cost| cost.voluntary_switches["billing-service"]).collect();
        assert_eq!(switches, [3.0, 1.0, 1.0]);
    }
}
