//! Registrations through the whole path: HTTP, PostgreSQL, gRPC, billing's PostgreSQL, outbox, Kafka, analytics; against
//! the two statements alone.

use serde_json::Value as Json;
use testbed::system::System;

use crate::{
    Outcome,
    fixture::{Fixture, SETTLE},
    footprint,
    load::{self, Time, figure, words},
    pgbench,
    results::{Pair, Results},
    show::step,
};

/// Patients that are there before.
const PATIENTS: u64 = 10_000;

pub(crate) async fn measure(ground: &mut Fixture, quick: bool, results: &mut Results) -> Outcome {
    let time = Time::of(quick);
    let mut system = ground.system("creates", &[]).await?;
    footprint::measure(&mut system, results).await?;
    pgbench::copy_schemas(ground, "creates", "pgbench_patients").await?;
    ground.seed("creates", 0, PATIENTS).await?;
    ground.seed("pgbench", 0, PATIENTS).await?;

    let mut pair = Pair::new(
        "creates",
        "registrations, 64 clients",
        "creates/s",
        "whole path",
        "pgbench, the same two statements",
    );
    let mut peak = 0.0_f64;
    for round in 0..if quick { 1 } else { 2 } {
        settle(ground).await?;
        let watched = ground.watched(&mut system);
        let url = format!("http://{}", system.patients[0].address());
        let arguments = words(&format!("closed {url} --scenario create -c 64 {watched}"));
        let arguments = [arguments, time.arguments()].concat();
        let run = load::run(ground.directory(), &arguments);
        let report = step(&format!("Registrations, whole path ({})", round + 1), run).await?;
        pair.ours(figure(&report, "/all/perSecond"));
        peak = peak.max(figure(&report, "/all/perSecond"));
        note_closed(&report, results);
        settle(ground).await?;
        let theirs = pgbench::rate(ground, "pgbench_patients", pgbench::CREATE, time);
        pair.theirs(step(&format!("Registrations, pgbench ({})", round + 1), theirs).await?);
    }
    results.pair(pair);

    for (part, name) in [(0.8, "80 %"), (0.5, "50 %")] {
        if quick && part > 0.6 {
            continue;
        }
        settle(ground).await?;
        let arguments = open(ground, &mut system, peak * part, time);
        let run = load::run(ground.directory(), &arguments);
        let report = step(&format!("Registrations at {name} of the peak, open loop"), run).await?;
        note_open(&report, part, results);
    }
    Ok(())
}

/// Arguments of an open loop with a follower.
fn open(ground: &Fixture, system: &mut System, rate: f64, time: Time) -> Vec<String> {
    let url = format!("http://{}", system.patients[0].address());
    let analytics = format!("http://{}", system.analytics.address());
    let follow = format!(
        "--analytics {analytics} --kafka {} --topic {}",
        ground.broker.address(),
        system.backing_services().topic
    );
    let arguments = words(&format!("open --rate {rate:.0} {url} --scenario create -c 256 {follow}"));
    [arguments, time.arguments()].concat()
}

/// Lets the servers finish what the last measurement left to do.
async fn settle(ground: &Fixture) -> Outcome {
    ground.cluster.run("postgres", "checkpoint").await?;
    smol::Timer::after(SETTLE).await;
    Ok(())
}

fn note_closed(report: &Json, results: &mut Results) {
    results.machine_of(report);
    results.figure("creates-p99", "registration, 64 clients, p99", "ms", figure(report, "/all/p99Ms"));
    results.cpu_of(report, "registrations");
    for usage in report["processes"].as_array().into_iter().flatten() {
        let name = usage["name"].as_str().unwrap_or_default();
        if name.ends_with("-service") {
            let rss = usage["peakRssMib"].as_f64().unwrap_or_default();
            results.figure(&format!("rss-load-{name}"), &format!("memory of {name} under load"), "MiB", rss);
        }
    }
}

fn note_open(report: &Json, part: f64, results: &mut Results) {
    let percent = (part * 100.0) as u32;
    let mut note = |key: String, what: &str, unit: &str, value: f64| {
        results.figure(&key, &format!("{what}, at {percent} % of the peak"), unit, value);
    };
    let suffix = if percent == 50 { String::new() } else { format!("-{percent}") };
    note(format!("open-p99{suffix}"), "registration, p99", "ms", figure(report, "/all/p99Ms"));
    note(format!("applied-p50{suffix}"), "POST to applied, p50", "ms", figure(report, "/applied/latency/p50Ms"));
    note(format!("applied-p99{suffix}"), "POST to applied, p99", "ms", figure(report, "/applied/latency/p99Ms"));
    let drained = figure(report, "/applied/afterTheEndMs");
    let key = if percent == 80 { "drained".to_owned() } else { format!("drained-{percent}") };
    note(key, "last event applied after the last answer", "ms", drained);
}
