//! Registrations through the whole path (HTTP, PostgreSQL, gRPC, billing's PostgreSQL, outbox, Kafka, analytics) against the two
//! statements alone.

use serde_json::Value as Json;
use testbed::system::System;

use crate::{
    Outcome,
    fixture::Fixture,
    footprint,
    load::{self, Time, figure, split_words},
    pgbench,
    progress::step,
    results::{Pair, Results},
};

/// Patients in the database before the run.
const PATIENTS: u64 = 10_000;

pub(crate) async fn measure(fixture: &mut Fixture, quick: bool, results: &mut Results) -> Outcome {
    let time = Time::of(quick);
    let mut system = fixture.system("creates", &[]).await?;
    footprint::measure(&mut system, results).await?;
    pgbench::copy_schemas(fixture, "creates", "pgbench_patients").await?;
    fixture.seed("creates", 0, PATIENTS).await?;
    fixture.seed("pgbench", 0, PATIENTS).await?;

    let mut pair = Pair::new(
        "creates",
        "registrations, 64 clients",
        "creates/s",
        "whole path",
        "pgbench, the same two statements",
    );
    let mut peak = 0.0_f64;
    for round in 0..if quick { 1 } else { 2 } {
        fixture.settle().await?;
        let watched = fixture.watched(&mut system);
        let url = format!("http://{}", system.patients[0].address());
        let arguments = split_words(&format!("closed {url} --scenario create -c 64 {watched}"));
        let arguments = [arguments, time.arguments()].concat();
        let run = load::run(fixture.directory(), &arguments);
        let report = step(&format!("Registrations, whole path ({})", round + 1), run).await?;
        pair.ours(figure(&report, "/all/perSecond"));
        peak = peak.max(figure(&report, "/all/perSecond"));
        record_closed(&report, results);
        fixture.settle().await?;
        let theirs = pgbench::rate(fixture, "pgbench_patients", pgbench::CREATE, time);
        pair.theirs(step(&format!("Registrations, pgbench ({})", round + 1), theirs).await?);
    }
    results.pair(pair);

    for (part, name) in [(0.8, "80 %"), (0.5, "50 %")] {
        if quick && part > 0.6 {
            continue;
        }
        fixture.settle().await?;
        let arguments = open(fixture, &mut system, peak * part, time);
        let run = load::run(fixture.directory(), &arguments);
        let report = step(&format!("Registrations at {name} of the peak, open loop"), run).await?;
        record_open(&report, part, results);
    }
    Ok(())
}

/// Arguments of an open loop that also measures event latency.
fn open(fixture: &Fixture, system: &mut System, rate: f64, time: Time) -> Vec<String> {
    let url = format!("http://{}", system.patients[0].address());
    let analytics = format!("http://{}", system.analytics.address());
    let event_latency = format!(
        "--analytics {analytics} --kafka {} --topic {}",
        fixture.broker.address(),
        system.backing_services().topic
    );
    let arguments = split_words(&format!("open --rate {rate:.0} {url} --scenario create -c 256 {event_latency}"));
    [arguments, time.arguments()].concat()
}

fn record_closed(report: &Json, results: &mut Results) {
    results.set_machine(report);
    results.figure("creates-p99", "registration, 64 clients, p99", "ms", figure(report, "/all/p99Ms"));
    results.record_cpu(report, "registrations");
    for usage in report["processes"].as_array().into_iter().flatten() {
        let name = usage["name"].as_str().unwrap_or_default();
        if name.ends_with("-service") {
            let rss = usage["peakRssMib"].as_f64().unwrap_or_default();
            results.figure(&format!("rss-load-{name}"), &format!("memory of {name} under load"), "MiB", rss);
        }
    }
}

fn record_open(report: &Json, part: f64, results: &mut Results) {
    let percent = (part * 100.0) as u32;
    let mut record = |key: String, what: &str, unit: &str, value: f64| {
        results.figure(&key, &format!("{what}, at {percent} % of the peak"), unit, value);
    };
    let suffix = if percent == 50 { String::new() } else { format!("-{percent}") };
    record(format!("open-p99{suffix}"), "registration, p99", "ms", figure(report, "/all/p99Ms"));
    record(format!("applied-p50{suffix}"), "POST to applied, p50", "ms", figure(report, "/applied/latency/p50Ms"));
    record(format!("applied-p99{suffix}"), "POST to applied, p99", "ms", figure(report, "/applied/latency/p99Ms"));
    let drained = figure(report, "/applied/afterTheEndMs");
    let key = if percent == 80 { "drained".to_owned() } else { format!("drained-{percent}") };
    record(key, "last event applied after the last response", "ms", drained);
}
