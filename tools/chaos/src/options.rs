//! The command line.

use std::time::Duration;

use testbed::broker::Kind;

/// The largest number of analytics-services.
const MAX_MEMBERS: usize = 8;

/// The command line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// How long faults are injected.
    pub(crate) length: Duration,
    pub(crate) seed: u64,
    pub(crate) clients: usize,
    /// The number of analytics-services. Several are members of one consumer group, on Apache Kafka.
    pub(crate) members: usize,
    /// The copies of each partition on other members.
    pub(crate) standbys: usize,
    pub(crate) deployment: Deployment,
}

/// The system into which faults are injected.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deployment {
    /// A system that is started for the run, with this broker; none is Apache Kafka if it can be installed, else Nisshi.
    Native(Option<Kind>),
    /// The same on Apache Kafka, with identities and TLS.
    Secure,
    /// The system that runs in containers.
    Containers,
}

impl Options {
    /// Parses the arguments; none if they are invalid.
    pub(crate) fn parse(words: &[&str]) -> Option<Self> {
        // Short, because people type it.
        let seed = u64::from(fastrand::u32(..));
        let mut options = Self {
            length: Duration::from_secs(60),
            seed,
            clients: 16,
            members: 1,
            standbys: 0,
            deployment: Deployment::Native(None),
        };
        match (words.contains(&"--docker"), words.contains(&"--secure")) {
            (false, false) => {}
            (true, false) => options.deployment = Deployment::Containers,
            (false, true) => options.deployment = Deployment::Secure,
            (true, true) => return None,
        }
        let others: Vec<_> = words.iter().copied().filter(|word| !["--docker", "--secure"].contains(word)).collect();
        for pair in others.chunks(2) {
            match pair {
                ["--seconds", number] => options.length = Duration::from_secs(number.parse::<u32>().ok()?.into()),
                ["--seed", number] => options.seed = number.parse().ok()?,
                ["--clients", number] => options.clients = number.parse().ok().filter(|clients| *clients > 0)?,
                ["--members", number] => {
                    options.members = number.parse().ok().filter(|members| (1..=MAX_MEMBERS).contains(members))?;
                }
                ["--standbys", number] => options.standbys = number.parse().ok()?,
                ["--broker", kind] if matches!(options.deployment, Deployment::Native(_)) => {
                    options.deployment = Deployment::Native(Some(match *kind {
                        "kafka" => Kind::Kafka,
                        "nisshi" => Kind::Nisshi,
                        _ => return None,
                    }));
                }
                _ => return None,
            }
        }
        // Each copy is on another member.
        if options.standbys >= options.members {
            return None;
        }
        if options.members > 1 {
            match &mut options.deployment {
                // Two members may count a partition at once: its coordinator does not wait for those of the previous generation.
                Deployment::Containers | Deployment::Native(Some(Kind::Nisshi)) => return None,
                Deployment::Native(broker) => *broker = Some(Kind::Kafka),
                Deployment::Secure => {}
            }
        }
        Some(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_members_need_apache_kafka_and_a_system_of_the_run() {
        let parse = |line: &str| Options::parse(&line.split(' ').collect::<Vec<_>>());
        for line in ["--members 3", "--members 3 --broker kafka", "--broker kafka --members 3"] {
            let options = parse(line).unwrap();
            assert_eq!(options.members, 3, "{line}");
            assert!(matches!(options.deployment, Deployment::Native(Some(Kind::Kafka))), "{line}");
        }
        assert!(matches!(parse("--secure --members 2").unwrap().deployment, Deployment::Secure));
        assert_eq!(parse("--broker nisshi --members 1").unwrap().members, 1);
        assert_eq!(parse("--standbys 1 --members 2").unwrap().standbys, 1);
        for line in [
            "--broker nisshi --members 2",
            "--members 2 --docker",
            "--members 0",
            "--members 9",
            "--members",
            "--members 2 --standbys 2",
            "--standbys 1",
            "--seconds 9223372036854775807",
        ] {
            assert!(parse(line).is_none(), "{line}");
        }
    }
}
