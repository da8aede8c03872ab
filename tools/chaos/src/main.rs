//! Injects random faults into the system while clients write; then waits for recovery, and audits it.

use std::process::ExitCode;

mod clients;
mod component;
mod containers;
mod docker;
mod members;
mod native;
mod options;
mod run;
mod schedule;
mod system;
mod topic;
mod undo_deletes;

use options::Options;

const USAGE: &str = "\
Usage: chaos [--seconds N] [--seed S] [--clients N] [--members N [--standbys N]] [--broker kafka|nisshi | --secure | --docker]

Starts PostgreSQL with a standby, a broker, three patient-services, billing-service and analytics-service, independent of any
`just up`. For N seconds (60) it kills, freezes and restarts them, one or two at a time, sets PostgreSQL's clock back and
forth and fails it over to the standby, while clients (16) write and read; then it waits for recovery and compares the
responses that clients got with PostgreSQL, the topic, billing and analytics. On Apache Kafka it then adds partitions to the
topic, which analytics must read, and deletes and refills the topic, at which analytics must halt. The same seed makes the
same schedule. With --members there are so many analytics-services, members of one consumer group, which are also killed, frozen
and stopped for longer than its session timeout; on Apache Kafka, because Nisshi's groups are not safe for several. With --standbys they
keep so many copies of each partition. With --secure that system is on Apache Kafka, with identities and TLS everywhere. With --docker it kills, freezes and restarts the containers that `just up --docker` or `just up-scaled` has
started in this checkout, PostgreSQL and the balancer among them; they keep running afterwards.

Exit codes: 0 nothing lost, 1 something lost, not recovered or not proven, 64 wrong arguments.
";

/// Exit code of a wrong command line: `EX_USAGE` of sysexits.h.
const WRONG_USAGE: u8 = 64;

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
