//! What one registration, update or deletion costs at a fixed rate and at the peak: CPU time and voluntary context switches
//! of each process, transactions, statements and WAL of PostgreSQL.

use crate::{
    Options, Outcome,
    cost::{Cost, PEAK},
    fixture::{Fixture, SETTLE},
    load::{self, Time, words},
    pgbench,
    results::Results,
    show::step,
};

/// What is measured unless the command line says otherwise.
pub(crate) const RATES: &str = "100,200,400,peak";
/// More than any peak, in operations a second, so that the deletions of a closed loop do not run out of patients.
const MOST_PER_SECOND: u64 = 4_000;
/// Patients that are updated by turns.
const UPDATED: u64 = 10_000;

pub(crate) async fn measure(ground: &mut Fixture, options: &Options, results: &mut Results) -> Outcome {
    let time = Time::of(options.quick);
    ground.count_statements().await?;
    let mut system = ground.system("lean", &[]).await?;
    let counters = pgbench::counters_command(ground, &["lean_patients", "lean_billing"])?;
    for action in &options.action {
        for rate in &options.rate {
            ground.cluster.run("postgres", "checkpoint").await?;
            smol::Timer::after(SETTLE).await;
            let watched = ground.watched(&mut system);
            let url = format!("http://{}", system.patients[0].address());
            let how = if rate == PEAK { "closed".to_owned() } else { format!("open --rate {rate}") };
            let per_second = rate.parse().unwrap_or(MOST_PER_SECOND);
            let own =
                if action == "delete" { per_second * (time.warm_up + time.measured).as_secs() + 64 } else { UPDATED };
            let arguments = words(&format!("{how} {url} --scenario {action} -c 64 --own {own} {watched}"));
            let counters = vec!["--counters".to_owned(), counters.clone()];
            let arguments = [arguments, counters, time.arguments()].concat();
            let run = load::run(ground.directory(), &arguments);
            let report = step(&format!("{action} at {}", named(rate)), run).await?;
            results.machine_of(&report);
            results.cost(Cost::of(action, rate, &report));
        }
    }
    Ok(())
}

fn named(rate: &str) -> String {
    if rate == PEAK { "the peak, 64 clients".to_owned() } else { format!("{rate}/s") }
}
