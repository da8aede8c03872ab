use std::{fmt, io};

use config::HostPort;

use crate::Malformed;

/// A broker's address and its source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) broker: HostPort,
    /// The broker whose metadata have the address; none for a bootstrap broker.
    pub(crate) advertised_by: Option<HostPort>,
}

impl Address {
    /// The address of a bootstrap broker.
    pub(crate) fn bootstrap(broker: &HostPort) -> Self {
        Self { broker: broker.clone(), advertised_by: None }
    }
}

/// Why there is no usable connection to a broker.
#[derive(Debug)]
pub(crate) struct Unreachable {
    pub(crate) address: Address,
    pub(crate) cause: Cause,
}

/// See [`Unreachable`].
#[derive(Debug)]
pub(crate) enum Cause {
    /// The host name cannot be resolved.
    Resolve(io::Error),
    /// The connection was refused or timed out.
    Connect(io::Error),
    /// The TLS handshake failed.
    Handshake(io::Error),
    /// The broker's side of the authentication is not valid: with SCRAM, it does not know the password.
    Authentication(String),
    /// The connection failed during a request.
    Broken(io::Error),
    /// The connection was closed before the first response.
    Closed,
    /// The connection was closed before the response to the first request after ApiVersions.
    ClosedAfterVersions,
    /// The first bytes are TLS.
    Tls,
    /// The first bytes are HTTP.
    Http,
    /// The first bytes are no response to ApiVersions.
    NotKafka(Malformed),
    /// Broker and client have no version of a request in common.
    UnsupportedVersion(String),
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { broker, advertised_by } = &self.address;
        match &self.cause {
            Cause::Resolve(error) => {
                write!(f, "the host name {} of {broker} cannot be resolved: {error}", broker.host)?
            }
            Cause::Connect(error) => write!(f, "no connection to {broker}: {error}")?,
            Cause::Handshake(error) => write!(f, "no TLS with {broker}: {error}")?,
            Cause::Authentication(why) => return write!(f, "the authentication of {broker} is not valid: {why}"),
            Cause::Broken(error) => return write!(f, "the connection to {broker} broke: {error}"),
            Cause::Closed => write!(
                f,
                "{broker} closed the connection without a response: perhaps its listener has another protocol than \
                 KAFKA_SECURITY_PROTOCOL, such as SSL or SASL_SSL, or it is no Kafka broker"
            )?,
            Cause::ClosedAfterVersions => write!(
                f,
                "{broker} closed the connection at the first request: perhaps it is being shut down, or the listener requires \
                 SASL, and KAFKA_SECURITY_PROTOCOL is another one"
            )?,
            Cause::Tls => write!(
                f,
                "{broker} speaks TLS: it is a listener of the protocol SSL or SASL_SSL, which KAFKA_SECURITY_PROTOCOL is \
                 not, or no Kafka broker"
            )?,
            Cause::NotKafka(error) => {
                write!(f, "{broker} does not speak the Kafka protocol ({error}): perhaps it is another service")?;
            }
            Cause::Http => write!(f, "{broker} speaks HTTP: it is no listener of a Kafka broker")?,
            Cause::UnsupportedVersion(text) => return write!(f, "{broker} {text}"),
        }
        match advertised_by {
            Some(advertised_by) => write!(
                f,
                ". The broker at {advertised_by} advertises {broker}: for the listener that clients use, its \
                 advertised.listeners must name a host and port that this machine can resolve and reach"
            ),
            None => write!(f, ". {broker} is a bootstrap broker (KAFKA_BOOTSTRAP_SERVERS)"),
        }
    }
}

impl std::error::Error for Unreachable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::Resolve(error) | Cause::Connect(error) | Cause::Handshake(error) | Cause::Broken(error) => {
                Some(error)
            }
            Cause::NotKafka(error) => Some(error),
            _ => None,
        }
    }
}
