use std::{fmt, io};

use config::HostPort;

use crate::Malformed;

/// A broker's address, and who named it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) broker: HostPort,
    /// The broker whose metadata have the address; none if the settings have it.
    pub(crate) advertised_by: Option<HostPort>,
}

impl Address {
    /// That of a bootstrap broker.
    pub(crate) fn of_settings(broker: &HostPort) -> Self {
        Self { broker: broker.clone(), advertised_by: None }
    }
}

/// Why a broker cannot be talked to.
#[derive(Debug)]
pub(crate) struct Unreachable {
    pub(crate) address: Address,
    pub(crate) cause: Cause,
}

/// See [`Unreachable`].
#[derive(Debug)]
pub(crate) enum Cause {
    /// There is no such host name, or it cannot be looked up.
    Name(io::Error),
    /// Nobody takes the connection.
    Connect(io::Error),
    /// The connection ended in the middle of something.
    Broken(io::Error),
    /// The connection was closed instead of the first answer.
    Closed,
    /// The connection was closed instead of the answer to the first request after ApiVersions.
    ClosedAfterVersions,
    /// What came is TLS.
    Tls,
    /// What came is HTTP.
    Http,
    /// What came is no answer to ApiVersions.
    Foreign(Malformed),
    /// There is no version of a request that both ends speak.
    Version(String),
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { broker, advertised_by } = &self.address;
        match &self.cause {
            Cause::Name(error) => write!(f, "the host name {} of {broker} cannot be resolved: {error}", broker.host)?,
            Cause::Connect(error) => write!(f, "there is no connection to {broker}: {error}")?,
            Cause::Broken(error) => return write!(f, "the connection to {broker} broke: {error}"),
            Cause::Closed => write!(
                f,
                "{broker} closed the connection instead of answering: perhaps a listener with TLS (SSL, SASL_SSL), or no \
                 broker of Kafka; this client speaks PLAINTEXT alone"
            )?,
            Cause::ClosedAfterVersions => write!(
                f,
                "{broker} closed the connection at the first request: perhaps it is being shut down, or the listener demands \
                 SASL (SASL_PLAINTEXT); this client speaks PLAINTEXT alone"
            )?,
            Cause::Tls => write!(
                f,
                "{broker} speaks TLS: it is a listener of the protocol SSL or SASL_SSL, or no broker of Kafka; this client \
                 speaks PLAINTEXT alone"
            )?,
            Cause::Foreign(error) => {
                write!(f, "what {broker} answers is none of Kafka's ({error}): perhaps it is another service")?;
            }
            Cause::Http => write!(f, "{broker} speaks HTTP: it is no listener of a Kafka broker")?,
            Cause::Version(text) => return write!(f, "{broker} {text}"),
        }
        match advertised_by {
            Some(advertised_by) => write!(
                f,
                ". The broker at {advertised_by} advertises {broker}: for the listener by which clients come, its \
                 advertised.listeners must name a host and port that this machine can resolve and reach"
            ),
            None => write!(f, ". {broker} is a bootstrap broker (KAFKA_BOOTSTRAP_SERVERS)"),
        }
    }
}

impl std::error::Error for Unreachable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::Name(error) | Cause::Connect(error) | Cause::Broken(error) => Some(error),
            Cause::Foreign(error) => Some(error),
            _ => None,
        }
    }
}
