//! Strikes the system with faults at random while clients write; then lets it heal, and audits it.

use std::{process::ExitCode, time::Duration};

use testbed::broker::Kind;

mod load;
mod parts;
mod run;
mod schedule;

const USAGE: &str = "\
Usage: chaos [--seconds N] [--seed S] [--clients N] [--broker kafka|nisshi]

Starts PostgreSQL, a broker, three patient-services, billing-service and analytics-service, apart from any `just up`. For
N seconds (60) it kills, freezes and restarts them, one or two at a time, while clients (16) write and read; then it lets
them heal and compares what clients were told with what PostgreSQL, the topic, billing and analytics hold. The same seed
makes the same schedule.

Exit codes: 0 nothing lost, 1 something lost or not healed, 64 wrong arguments.
";

/// Exit code of a wrong command line: `EX_USAGE` of sysexits.h.
const WRONG_USAGE: u8 = 64;

/// What the command line asks for.
#[derive(Clone, Copy, Debug)]
struct Options {
    /// How long faults strike.
    length: Duration,
    seed: u64,
    clients: usize,
    /// None: Apache Kafka if it can be had, else Nisshi.
    broker: Option<Kind>,
}

impl Options {
    fn parse(words: &[&str]) -> Option<Self> {
        // A short seed is easily typed again.
        let seed = u64::from(fastrand::u32(..));
        let mut options = Self { length: Duration::from_secs(60), seed, clients: 16, broker: None };
        for pair in words.chunks(2) {
            match pair {
                ["--seconds", number] => options.length = Duration::from_secs(number.parse().ok()?),
                ["--seed", number] => options.seed = number.parse().ok()?,
                ["--clients", number] => options.clients = number.parse().ok().filter(|clients| *clients > 0)?,
                ["--broker", "kafka"] => options.broker = Some(Kind::Kafka),
                ["--broker", "nisshi"] => options.broker = Some(Kind::Nisshi),
                _ => return None,
            }
        }
        Some(options)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words == ["--help"] {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let Some(options) = Options::parse(&words) else {
        eprint!("{USAGE}");
        return ExitCode::from(WRONG_USAGE);
    };
    match runtime::block_on(2, run::run(options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("VERDICT: FAILED: {error} (seed {})", options.seed);
            ExitCode::FAILURE
        }
    }
}
