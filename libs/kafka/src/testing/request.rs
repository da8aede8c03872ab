//! What requests of tests have in common.

use std::time::Duration;

use kafka_protocol::error::ParseResponseErrorCode as _;

pub(super) use crate::call::text;
use crate::{Error, Settings, call::Deadline, connection::Connection, unreachable::Address};

/// How long a coordinator may take to be available, and to end the transaction or the rebalance before.
pub(super) const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a transactional producer or a member of a group may be used.
pub(super) const TEST_DEADLINE: Duration = Duration::from_secs(600);

pub(super) fn check(code: i16) -> Result<(), Error> {
    code.err().map_or(Ok(()), |error| Err(error.into()))
}

/// A connection to the first bootstrap broker.
pub(super) async fn connect(settings: &Settings, deadline: Deadline) -> Result<Connection, Error> {
    let broker = settings.bootstrap.0.first().ok_or(Error::UnknownTopic)?;
    Connection::open(&Address::bootstrap(broker), settings, deadline).await
}
