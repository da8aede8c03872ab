//! Updates and deletions: PUT and DELETE /patients/{id} against the same statements by pgbench.

use serde_json::Value as Json;
use testbed::system::System;

use crate::{
    Outcome,
    fixture::Fixture,
    load::{self, Time, figure, split_words},
    pgbench,
    progress::step,
    results::{Pair, Results},
};

/// Patients that are updated one after the other, by the service and by pgbench.
const UPDATED: u64 = 10_000;
/// Patients that are registered before a turn for each of its seconds: more than it can delete.
const OWN_PER_SECOND: u64 = 10_000;

pub(crate) async fn measure(fixture: &mut Fixture, quick: bool, results: &mut Results) -> Outcome {
    let time = Time { warm_up: Time::TURN.warm_up, measured: Time::of(quick).measured / if quick { 1 } else { 2 } };
    let mut system = fixture.system("updates", &[]).await?;
    pgbench::copy_schemas(fixture, "updates", "pgbench_changes_patients").await?;
    fixture.seed("updates", 0, UPDATED).await?;
    fixture.seed("pgbench_changes", 0, UPDATED).await?;
    let rounds = if quick { 1 } else { 3 };

    let theirs = "pgbench, the same two statements";
    let mut pair =
        Pair::new("updates", "updates, 64 clients", "updates/s", "PUT /patients/{id}, event to Kafka", theirs);
    for round in 1..=rounds {
        let report = ours(fixture, &mut system, "update", UPDATED, time, round).await?;
        pair.ours(figure(&report, "/all/perSecond"));
        results.figure("updates-p99", "update, 64 clients, p99", "ms", figure(&report, "/all/p99Ms"));
        results.record_cpu(&report, "updates");
        fixture.settle().await?;
        let script = pgbench::update(UPDATED);
        let rate = pgbench::rate(fixture, "pgbench_changes_patients", &script, time);
        pair.theirs(step(&format!("Updates, pgbench ({round})"), rate).await?);
    }
    results.pair(pair);

    let mut pair =
        Pair::new("deletions", "deletions, 64 clients", "deletions/s", "DELETE /patients/{id}, event to Kafka", theirs);
    let seconds = (time.warm_up + time.measured).as_secs();
    let (own, mut seeded) = (OWN_PER_SECOND * seconds, UPDATED);
    for round in 1..=rounds {
        let report = ours(fixture, &mut system, "delete", own, time, round).await?;
        pair.ours(figure(&report, "/byAction/delete/perSecond"));
        results.figure("deletions-p99", "deletion, 64 clients, p99", "ms", figure(&report, "/byAction/delete/p99Ms"));
        results.record_cpu(&report, "deletions");
        let from = seeded;
        seeded += pgbench::MAX_CHANGES_OF_ALL * seconds;
        fixture.seed("pgbench_changes", from, seeded).await?;
        fixture.settle().await?;
        let script = pgbench::delete(from);
        let rate = pgbench::rate(fixture, "pgbench_changes_patients", &script, time);
        pair.theirs(step(&format!("Deletions, pgbench ({round})"), rate).await?);
    }
    results.pair(pair);
    Ok(())
}

async fn ours(
    fixture: &mut Fixture,
    system: &mut System,
    scenario: &str,
    own: u64,
    time: Time,
    round: u32,
) -> Outcome<Json> {
    fixture.settle().await?;
    let watched = fixture.watched(system);
    let url = format!("http://{}", system.patients[0].address());
    let arguments = split_words(&format!("closed {url} --scenario {scenario} -c 64 --own {own} {watched}"));
    let arguments = [arguments, time.arguments()].concat();
    let run = load::run(fixture.directory(), &arguments);
    let report = step(&format!("{scenario}, HTTP ({round})"), run).await?;
    warn_of_creations(&report, scenario);
    Ok(report)
}

/// Warns if the clients ran out of patients.
fn warn_of_creations(report: &Json, scenario: &str) {
    let others = figure(report, "/byAction/create/count");
    if others > 0.0 {
        eprintln!("{scenario}: {others} requests made new patients, because none was left to be changed");
    }
}
