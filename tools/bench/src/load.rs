//! Runs of tools/load.

use std::{ops::RangeInclusive, path::Path, process::Command, time::Duration};

use serde_json::Value as Json;

use crate::{Failure, Outcome, tool};

/// Runs `load` and returns its report.
///
/// # Errors
/// If it fails, or if a request failed: a rate of errors is not a result.
pub(crate) async fn run(directory: &Path, arguments: &[String]) -> Outcome<Json> {
    let report = directory.join("load.json");
    let mut command = Command::new(tool::workspace_binary("load")?);
    command.args(arguments).arg("--quiet").arg("--json").arg(&report);
    tool::output(command).await?;
    let report: Json = serde_json::from_str(&std::fs::read_to_string(report)?)?;
    let errors = report["errors"].as_object().map_or(0, serde_json::Map::len);
    if errors > 0 {
        return Err(Failure(format!("load {}: {}", arguments.join(" "), report["errors"])));
    }
    Ok(report)
}

/// Arguments from words.
pub(crate) fn split_words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// How long a measurement takes: warm-up and measured time.
#[derive(Clone, Copy)]
pub(crate) struct Time {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

impl Time {
    /// Of one turn of [`turns`].
    pub(crate) const TURN: Self = Self { warm_up: Duration::from_secs(2), measured: Duration::from_secs(4) };

    pub(crate) fn of(quick: bool) -> Self {
        let (warm_up, measured) = if quick { (2, 4) } else { (5, 20) };
        Self { warm_up: Duration::from_secs(warm_up), measured: Duration::from_secs(measured) }
    }

    pub(crate) fn arguments(self) -> Vec<String> {
        split_words(&format!("-w {}s -d {}s", self.warm_up.as_secs(), self.measured.as_secs()))
    }
}

/// The turns in which ours and theirs alternate: many and short, because the speed of the machine changes within minutes.
pub(crate) fn turns(quick: bool) -> RangeInclusive<u32> {
    1..=if quick { 2 } else { 6 }
}

/// A figure of a report, by its JSON pointer; 0 if it is not there.
pub(crate) fn figure(report: &Json, pointer: &str) -> f64 {
    report.pointer(pointer).and_then(Json::as_f64).unwrap_or_default()
}
