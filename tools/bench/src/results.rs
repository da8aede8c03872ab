//! Results: pairs with their ratio, and figures that have no counterpart; as JSON and as a table.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{
    Outcome,
    cost::{self, Cost},
    growth::{self, Series},
};

/// A ratio below this fraction of the recorded one is a regression. A short run on a busy machine is inexact; a broken fast
/// path costs more than that.
const MIN_RELATIVE_RATIO: f64 = 0.5;

/// Targets of the system, by the keys of pairs and figures.
const TARGETS: [(&str, Bound, f64); 17] = [
    ("creates", Bound::AtLeast, 0.5),
    ("creates-p99", Bound::AtMost, 100.0),
    ("reads", Bound::AtLeast, 0.5),
    ("edge", Bound::AtLeast, 0.6),
    ("replay", Bound::AtLeast, 0.5),
    ("replay-rate", Bound::AtLeast, 200_000.0),
    ("unary", Bound::AtLeast, 0.8),
    ("rss-load-patient-service", Bound::AtMost, 60.0),
    ("rss-load-billing-service", Bound::AtMost, 60.0),
    ("rss-load-analytics-service", Bound::AtMost, 60.0),
    ("rss-idle-patient-service", Bound::AtMost, 11.5),
    ("rss-idle-billing-service", Bound::AtMost, 11.5),
    ("rss-idle-analytics-service", Bound::AtMost, 11.5),
    ("ready-patient-service", Bound::AtMost, 300.0),
    ("ready-billing-service", Bound::AtMost, 300.0),
    ("drained", Bound::AtMost, 1000.0),
    ("applied-p99", Bound::AtMost, 150.0),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    AtLeast,
    AtMost,
}

/// The results of a run.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    /// The machine of the last measurement.
    machine: Option<Json>,
    pairs: BTreeMap<String, Pair>,
    figures: BTreeMap<String, Figure>,
    #[serde(default)]
    growth: Vec<Series>,
    /// The cost of operations, by the measurement `lean`.
    #[serde(default)]
    lean: Vec<Cost>,
}

/// Rates of ours and of what it is compared with, measured in turn.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pair {
    key: String,
    what: String,
    unit: String,
    ours_is: String,
    theirs_is: String,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// A figure by itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Figure {
    what: String,
    unit: String,
    value: f64,
}

impl Pair {
    pub(crate) fn new(key: &str, what: &str, unit: &str, ours_is: &str, theirs_is: &str) -> Self {
        Self {
            key: key.to_owned(),
            what: what.to_owned(),
            unit: unit.to_owned(),
            ours_is: ours_is.to_owned(),
            theirs_is: theirs_is.to_owned(),
            ours: Vec::new(),
            theirs: Vec::new(),
        }
    }

    pub(crate) fn ours(&mut self, rate: f64) {
        self.ours.push(rate);
    }

    pub(crate) fn theirs(&mut self, rate: f64) {
        self.theirs.push(rate);
    }

    /// Our mean rate.
    pub(crate) fn rate(&self) -> f64 {
        mean(&self.ours)
    }

    fn ratio(&self) -> f64 {
        self.rate() / mean(&self.theirs)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

impl Results {
    /// The recorded results; none if there are none.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
    }

    pub(crate) fn write(&self, path: &Path) -> Outcome {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }

    /// These results, and the earlier ones that were not measured again.
    pub(crate) fn merged_over(self, earlier: Option<Self>) -> Self {
        let mut merged = earlier.unwrap_or_default();
        merged.machine = self.machine.or(merged.machine);
        merged.pairs.extend(self.pairs);
        merged.figures.extend(self.figures);
        growth::merge(&mut merged.growth, self.growth);
        cost::merge(&mut merged.lean, self.lean);
        merged
    }

    pub(crate) fn pair(&mut self, pair: Pair) {
        self.pairs.insert(pair.key.clone(), pair);
    }

    pub(crate) fn figure(&mut self, key: &str, what: &str, unit: &str, value: f64) {
        self.figures.insert(key.to_owned(), Figure { what: what.to_owned(), unit: unit.to_owned(), value });
    }

    /// Records the CPU time of each process of a load report, per thousand requests.
    pub(crate) fn record_cpu(&mut self, report: &Json, requests: &str) {
        let thousands = report.pointer("/all/count").and_then(Json::as_f64).unwrap_or(f64::NAN) / 1e3;
        for usage in report["processes"].as_array().into_iter().flatten() {
            let name = usage["name"].as_str().unwrap_or_default();
            let seconds = usage["cpuSeconds"].as_f64().unwrap_or_default() / thousands;
            self.figure(
                &format!("cpu-{requests}-{name}"),
                &format!("CPU of {name} for 1,000 {requests}"),
                "ms",
                seconds * 1e3,
            );
        }
    }

    /// Records the cost of an operation.
    pub(crate) fn cost(&mut self, cost: Cost) {
        self.lean.push(cost);
    }

    pub(crate) fn growth(&mut self, growth: Vec<Series>) {
        self.growth = growth;
    }

    /// How the cost grows.
    pub(crate) fn series(&self) -> &[Series] {
        &self.growth
    }

    /// How the cost grows, as a table in Markdown.
    pub(crate) fn growth_table(&self) -> String {
        let mut text = "| by | what | requests/s (p99 in ms) at each size |\n|---|---|---|\n".to_owned();
        for Series { axis, what, points } in &self.growth {
            let points =
                points.iter().map(|point| format!("{}: **{:.0}** ({:.1})", point.at, point.per_second, point.p99_ms));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {axis} | {what} | {} |", points.collect::<Vec<_>>().join(", "));
        }
        text
    }

    /// Sets the machine of a load report.
    pub(crate) fn set_machine(&mut self, report: &Json) {
        self.machine = Some(report["machine"].clone());
    }

    /// The pairs whose ratio is far below the recorded one, each with a sentence.
    pub(crate) fn regressions(&self, recorded: Option<&Self>) -> Vec<String> {
        let compare = |pair: &Pair| {
            let before = recorded?.pairs.get(&pair.key)?.ratio();
            let ratio = pair.ratio();
            // NaN is a regression, too.
            let is_kept = ratio >= before * MIN_RELATIVE_RATIO;
            (!is_kept).then(|| format!("{}: the ratio is {ratio:.2}, recorded is {before:.2}", pair.what))
        };
        self.pairs.values().filter_map(compare).collect()
    }

    /// Everything, as a table in Markdown.
    pub(crate) fn table(&self, recorded: Option<&Self>) -> String {
        let mut text = String::new();
        if !self.pairs.is_empty() {
            text +=
                "| | ours | | compared with | | ratio | target | recorded |\n|---|---|---:|---|---:|---:|---:|---:|\n";
        }
        for pair in self.pairs.values() {
            let Pair { key, what, unit, ours_is, theirs_is, ours, theirs } = pair;
            let before =
                recorded.and_then(|recorded| recorded.pairs.get(key)).map(|pair| format!("{:.2}", pair.ratio()));
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {what} | {ours_is} | {:.0} {unit} | {theirs_is} | {:.0} {unit} | **{:.2}** | {} | {} |",
                mean(ours),
                mean(theirs),
                pair.ratio(),
                target(key, pair.ratio()),
                before.unwrap_or_default(),
            );
        }
        if !self.figures.is_empty() {
            text += "\n| | | target |\n|---|---:|---:|\n";
        }
        for (key, Figure { what, unit, value }) in &self.figures {
            let digits = if *value < 10.0 { 2 } else { usize::from(*value < 1000.0) };
            let _ = writeln!(text, "| {what} | {value:.digits$} {unit} | {} |", target(key, *value));
        }
        for action in cost::ACTIONS {
            let costs: Vec<_> = self.lean.iter().filter(|cost| cost.action == action).cloned().collect();
            if !costs.is_empty() {
                let _ = write!(text, "\n{}", cost::table(&costs));
            }
        }
        text
    }
}

/// The bound of a key and whether a value keeps it; empty if it has none.
fn target(key: &str, value: f64) -> String {
    let Some((_, bound, limit)) = TARGETS.iter().find(|(name, ..)| *name == key) else { return String::new() };
    let (sign, kept) = match bound {
        Bound::AtLeast => (">=", value >= *limit),
        Bound::AtMost => ("<=", value <= *limit),
    };
    format!("{sign} {limit}{}", if kept { "" } else { ", **missed**" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(ours: f64, theirs: f64) -> Results {
        let mut pair = Pair::new("creates", "creates", "requests/s", "ours", "pgbench");
        pair.ours(ours);
        pair.theirs(theirs);
        let mut results = Results::default();
        results.pair(pair);
        results
    }

    #[test]
    fn only_a_ratio_far_below_the_recorded_one_is_a_regression() {
        let recorded = results(600.0, 1000.0);
        assert!(results(60.0, 100.0).regressions(Some(&recorded)).is_empty(), "absolute times do not matter");
        assert!(results(40.0, 100.0).regressions(Some(&recorded)).is_empty());
        assert_eq!(results(20.0, 100.0).regressions(Some(&recorded)).len(), 1);
        assert_eq!(results(f64::NAN, 100.0).regressions(Some(&recorded)).len(), 1);
        assert!(results(20.0, 100.0).regressions(None).is_empty());
    }

    #[test]
    fn a_missed_target_is_marked() {
        assert!(results(400.0, 1000.0).table(None).contains(">= 0.5, **missed**"));
        assert!(!results(600.0, 1000.0).table(None).contains("missed"));
    }

    #[test]
    fn what_was_not_measured_again_stays_recorded() {
        let mut new = Results::default();
        new.figure("ready", "ready", "ms", 100.0);
        let merged = new.merged_over(Some(results(1.0, 2.0)));
        assert!(merged.pairs.contains_key("creates") && merged.figures.contains_key("ready"));
    }
}
