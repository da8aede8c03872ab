//! The programs that a measurement requires. A measurement without its programs is skipped with a message.

use std::process::{Command, Stdio};

use testbed::broker::Kind;

use crate::{Failure, pgbench};

/// Measurements that need PostgreSQL and Apache Kafka.
const NEED_SERVERS: [&str; 6] = ["creates", "updates", "reads", "replay", "lean", "takeover"];
/// Client programs of PostgreSQL that they need.
const POSTGRESQL_PROGRAMS: [&str; 3] = ["pgbench", "psql", "pg_dump"];

/// What a measurement requires and this machine lacks; none if nothing is missing.
pub(crate) fn missing(measurement: &str) -> Option<String> {
    let mut missing = Vec::new();
    if NEED_SERVERS.contains(&measurement) {
        let can_fetch = runs("java", "-version") && runs("mvn", "--version");
        if !Kind::Kafka.is_installed() && !can_fetch {
            missing.push("Apache Kafka, or Java and Maven to fetch it".to_owned());
        }
        // A replay is compared with kcat, and a takeover with nothing.
        let programs = if ["replay", "takeover"].contains(&measurement) { &[][..] } else { &POSTGRESQL_PROGRAMS };
        missing.extend(programs.iter().filter_map(|name| match pgbench::binary(name) {
            Ok(path) if path.is_file() => None,
            Ok(path) => Some(path.display().to_string()),
            Err(Failure(why)) => Some(format!("{name}: {why}")),
        }));
    }
    if measurement == "replay" && !runs("kcat", "-V") {
        missing.push("kcat".to_owned());
    }
    (!missing.is_empty()).then(|| missing.join(", "))
}

fn runs(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_missing() {
        assert!(!runs("there-is-no-such-program", "--version"));
        assert!(runs("true", ""));
        assert_eq!(missing("edge"), None, "it needs nothing but what is built");
    }
}
