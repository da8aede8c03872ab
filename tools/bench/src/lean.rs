//! The cost of one registration, update or deletion at a fixed rate and at the peak: CPU time and voluntary context switches
//! of each process, transactions, statements and WAL of PostgreSQL.

use crate::{
    Options, Outcome,
    cost::{Cost, PEAK},
    fixture::Fixture,
    load::{self, Time, split_words},
    pgbench,
    progress::step,
    results::Results,
};

/// The default of `--rate`.
pub(crate) const RATES: &str = "100,200,400,peak";
/// More operations a second than any peak, so that the deletions of a closed loop do not run out of patients.
const MAX_PER_SECOND: u64 = 4_000;
/// Patients that the clients update one after the other.
const UPDATED: u64 = 10_000;

pub(crate) async fn measure(fixture: &mut Fixture, options: &Options, results: &mut Results) -> Outcome {
    let time = Time::of(options.quick);
    fixture.count_statements().await?;
    let mut system = fixture.system("lean", &[]).await?;
    let counters = pgbench::counters_command(fixture, &["lean_patients", "lean_billing"])?;
    for action in &options.action {
        for rate in &options.rate {
            fixture.settle().await?;
            let watched = fixture.watched(&mut system);
            let url = format!("http://{}", system.patients[0].address());
            let how = if rate == PEAK { "closed".to_owned() } else { format!("open --rate {rate}") };
            let per_second = rate.parse().unwrap_or(MAX_PER_SECOND);
            let own =
                if action == "delete" { per_second * (time.warm_up + time.measured).as_secs() + 64 } else { UPDATED };
            let arguments = split_words(&format!("{how} {url} --scenario {action} -c 64 --own {own} {watched}"));
            let counters = vec!["--counters".to_owned(), counters.clone()];
            let arguments = [arguments, counters, time.arguments()].concat();
            let run = load::run(fixture.directory(), &arguments);
            let report = step(&format!("{action} at {}", label(rate)), run).await?;
            results.set_machine(&report);
            results.cost(Cost::of(action, rate, &report));
        }
    }
    Ok(())
}

fn label(rate: &str) -> String {
    if rate == PEAK { "the peak, 64 clients".to_owned() } else { format!("{rate}/s") }
}
