//! The command line.

use std::time::Duration;

use testbed::broker::Kind;

/// The command line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// How long faults are injected.
    pub(crate) length: Duration,
    pub(crate) seed: u64,
    pub(crate) clients: usize,
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
        let mut options =
            Self { length: Duration::from_secs(60), seed, clients: 16, deployment: Deployment::Native(None) };
        match (words.contains(&"--docker"), words.contains(&"--secure")) {
            (false, false) => {}
            (true, false) => options.deployment = Deployment::Containers,
            (false, true) => options.deployment = Deployment::Secure,
            (true, true) => return None,
        }
        let others: Vec<_> = words.iter().copied().filter(|word| !["--docker", "--secure"].contains(word)).collect();
        for pair in others.chunks(2) {
            match pair {
                ["--seconds", number] => options.length = Duration::from_secs(number.parse().ok()?),
                ["--seed", number] => options.seed = number.parse().ok()?,
                ["--clients", number] => options.clients = number.parse().ok().filter(|clients| *clients > 0)?,
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
        Some(options)
    }
}
