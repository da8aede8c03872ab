//! The result of a run, for people and as JSON.

use std::{collections::BTreeMap, fmt, time::Duration};

use chrono::{SecondsFormat, Utc};
use serde::Serialize;

use crate::{
    counters::Counters,
    event_latency::POLL_INTERVAL,
    machine::Machine,
    options::Options,
    processes::Usage,
    recorder::{Recorder, Summary},
    scenario::Action,
};

/// The result of a run, with the parameters and the machine.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    at: String,
    version: &'static str,
    machine: Machine,
    url: String,
    /// The scenario, or the path.
    scenario: String,
    /// `closed`, or `open` with its rate.
    loop_kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    connections: u16,
    /// Existing patients that were read.
    known_patients: usize,
    warm_up_seconds: f64,
    measured_seconds: f64,
    /// Successful requests, all together.
    all: Summary,
    /// Successful requests by action.
    by_action: BTreeMap<&'static str, Summary>,
    /// Failures by action and kind.
    errors: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<EventLatency>,
    processes: Vec<Usage>,
    /// The growth of the counters of `--counters`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    counters: Counters,
}

/// The latency of events: from POST until analytics has applied the event.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventLatency {
    pub(crate) latency: Summary,
    /// Patients whose event was not applied in time.
    pub(crate) missing: u64,
    /// From the last response of the run until the last event was applied.
    pub(crate) after_the_end_ms: f64,
}

impl Report {
    pub(crate) fn new(
        options: &Options,
        known_patients: usize,
        measured: Duration,
        recorder: &Recorder,
        applied: Option<EventLatency>,
        processes: Vec<Usage>,
        counters: Counters,
    ) -> Self {
        let run = options.run();
        let scenario = match &run.path {
            Some(path) => format!("GET {path}"),
            None => format!("{:?}", run.scenario).to_lowercase(),
        };
        let by_action = Action::ALL.into_iter().filter_map(|action| {
            recorder.by_action.get(&action).map(|latencies| (action.name(), latencies.summary(measured)))
        });
        Self {
            at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::this(),
            url: run.url.clone(),
            scenario,
            loop_kind: if options.rate().is_some() { "open" } else { "closed" },
            rate: options.rate(),
            connections: run.connections,
            known_patients,
            warm_up_seconds: run.warm_up.as_secs_f64(),
            measured_seconds: measured.as_secs_f64(),
            all: recorder.all().summary(measured),
            by_action: by_action.collect(),
            errors: recorder.errors.clone(),
            applied,
            processes,
            counters,
        }
    }

    /// Whether any request succeeded.
    pub(crate) fn succeeded(&self) -> bool {
        self.all.count > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, scenario, connections, measured_seconds, warm_up_seconds, known_patients, .. } = self;
        let how = match self.rate {
            Some(rate) => format!("open loop at {rate} requests/s"),
            None => "closed loop".to_owned(),
        };
        writeln!(f, "{scenario} on {url}, {how}, {connections} connections")?;
        writeln!(f, "{measured_seconds:.1} s measured after {warm_up_seconds:.1} s, {known_patients} known patients")?;
        writeln!(f, "on {}\n", self.machine)?;
        writeln!(
            f,
            "{:<12}{:>10}{:>11}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "", "count", "per s", "mean ms", "p50", "p90", "p99", "p99.9", "max"
        )?;
        let mut row = |name: &str, summary: &Summary| {
            let Summary { count, per_second, mean_ms, p50_ms, p90_ms, p99_ms, p999_ms, max_ms } = summary;
            writeln!(
                f,
                "{name:<12}{count:>10}{per_second:>11.1}{mean_ms:>10.2}{p50_ms:>10.2}{p90_ms:>10.2}{p99_ms:>10.2}\
                 {p999_ms:>10.2}{max_ms:>10.2}"
            )
        };
        for (name, summary) in &self.by_action {
            row(name, summary)?;
        }
        if self.by_action.len() != 1 {
            row("all", &self.all)?;
        }
        if let Some(applied) = &self.applied {
            row("applied", &applied.latency)?;
            writeln!(
                f,
                "\nThe last event was applied {:.0} ms after the last response; {} were not applied in time.\n\
                 (applied: from POST until analytics-service has applied the event, polled every {} ms)",
                applied.after_the_end_ms,
                applied.missing,
                POLL_INTERVAL.as_millis()
            )?;
        }
        writeln!(f)?;
        let count = self.all.count.max(1) as f64;
        for Usage { name, cpu_seconds, peak_rss_mib, voluntary_switches } in &self.processes {
            let (per_thousand, switches) = (cpu_seconds / count * 1e3, *voluntary_switches as f64 / count);
            writeln!(
                f,
                "{name:<20}{cpu_seconds:>8.2} s CPU {per_thousand:>8.3} s per 1000 requests {switches:>8.2} voluntary \
                 switches per request {peak_rss_mib:>8.1} MiB at most"
            )?;
        }
        for (name, growth) in &self.counters {
            writeln!(f, "{name:<20}{growth:>12.0} {:>12.3} per request", growth / count)?;
        }
        if self.errors.is_empty() {
            return writeln!(f, "\nno errors");
        }
        writeln!(f, "\nerrors")?;
        self.errors.iter().try_for_each(|(kind, count)| writeln!(f, "{count:>10}  {kind}"))
    }
}
