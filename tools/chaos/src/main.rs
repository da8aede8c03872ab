//! Injects faults at random into the system while clients write; then lets it recover, and audits it.

use std::{process::ExitCode, time::Duration};

use testbed::broker::Kind;

mod containers;
mod docker;
mod load;
mod native;
mod parts;
mod run;
mod schedule;
mod system;
mod topic;
mod undo_deletes;

const USAGE: &str = "\
Usage: chaos [--seconds N] [--seed S] [--clients N] [--broker kafka|nisshi | --docker]

Starts PostgreSQL with a standby, a broker, three patient-services, billing-service and analytics-service, apart from any
`just up`. For N seconds (60) it kills, freezes and restarts them, one or two at a time, sets PostgreSQL's clock back and
forth and has it fail over to the standby, while clients (16) write and read; then it lets them heal and compares what
clients were told with what PostgreSQL, the topic, billing and analytics hold. On Apache Kafka it then adds partitions to the
topic, and deletes and refills it: analytics has to read the former and to halt. The same seed makes the same schedule. With
--docker it kills, freezes and restarts the containers that `just up --docker` or `just up-scaled` has started in this
checkout, PostgreSQL and the balancer among them; they stay.

Exit codes: 0 nothing lost, 1 something lost, not healed or not proven, 64 wrong arguments.
";

/// Exit code of a wrong command line: `EX_USAGE` of sysexits.h.
const WRONG_USAGE: u8 = 64;

/// What the command line asks for.
#[derive(Clone, Copy, Debug)]
struct Options {
    /// How long faults are injected.
    length: Duration,
    seed: u64,
    clients: usize,
    place: Place,
}

/// Into which system faults are injected.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// One of its own on this machine. Without a wish for a broker: Apache Kafka if it can be had, else Nisshi.
    Native(Option<Kind>),
    /// The one that is up in containers.
    Containers,
}

impl Options {
    fn parse(words: &[&str]) -> Option<Self> {
        // A short seed is easily typed again.
        let seed = u64::from(fastrand::u32(..));
        let mut options = Self { length: Duration::from_secs(60), seed, clients: 16, place: Place::Native(None) };
        if words.contains(&"--docker") {
            options.place = Place::Containers;
        }
        let others: Vec<_> = words.iter().copied().filter(|word| *word != "--docker").collect();
        for pair in others.chunks(2) {
            match pair {
                ["--seconds", number] => options.length = Duration::from_secs(number.parse().ok()?),
                ["--seed", number] => options.seed = number.parse().ok()?,
                ["--clients", number] => options.clients = number.parse().ok().filter(|clients| *clients > 0)?,
                ["--broker", kind] if matches!(options.place, Place::Native(_)) => {
                    options.place = Place::Native(Some(match *kind {
                        "kafka" => Kind::Kafka,
                        "nisshi" => Kind::Nisshi,
                        _ => return None,
                    }));
                }
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
