//! Reads by id: GET /patients/{id} against the same select by pgbench.

use crate::{
    Outcome,
    fixture::Fixture,
    load::{self, Time, figure, split_words, turns},
    pgbench,
    progress::step,
    results::{Pair, Results},
};

/// Patients that are read, at random.
const PATIENTS: u64 = 100_000;

pub(crate) async fn measure(fixture: &mut Fixture, quick: bool, results: &mut Results) -> Outcome {
    let mut system = fixture.system("reads", &[]).await?;
    let patients = if quick { PATIENTS / 4 } else { PATIENTS };
    fixture.seed("reads", 0, patients).await?;
    let mut pair =
        Pair::new("reads", "reads by id, 64 clients", "reads/s", "GET /patients/{id}", "pgbench, the same select");
    for turn in turns(quick) {
        let watched = fixture.watched(&mut system);
        let url = format!("http://{}", system.patients[0].address());
        let arguments = split_words(&format!("closed {url} --scenario read -c 64 --known {patients} {watched}"));
        let arguments = [arguments, Time::TURN.arguments()].concat();
        let run = load::run(fixture.directory(), &arguments);
        let report = step(&format!("Reads by id, HTTP ({turn})"), run).await?;
        pair.ours(figure(&report, "/all/perSecond"));
        results.figure("reads-p99", "read by id, 64 clients, p99", "ms", figure(&report, "/all/p99Ms"));
        results.record_cpu(&report, "reads");
        let script = pgbench::read(patients);
        let theirs = pgbench::rate(fixture, "reads_patients", &script, Time::TURN);
        pair.theirs(step(&format!("Reads by id, pgbench ({turn})"), theirs).await?);
    }
    results.pair(pair);
    Ok(())
}
