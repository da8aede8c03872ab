//! The system under test.

use std::path::PathBuf;

use smol::lock::Mutex;
use testbed::{Error, Scratch, audit::Auditor, clock::SteppedClock, http::Client};

use crate::{component::Component, docker, schedule::ComponentIndex};

/// A running system, and what a run may do to it.
pub(crate) struct SystemUnderTest {
    /// For the report.
    pub(crate) description: String,
    /// Its components with their names. The schedule refers to them by index.
    pub(crate) components: Vec<(String, Mutex<Component>)>,
    /// Which components are members of the consumer group, if there are several.
    pub(crate) members: Vec<ComponentIndex>,
    /// Clients of patient-service: one for each replica, or one for the balancer.
    pub(crate) clients: Vec<Client>,
    /// The auditor, if the addresses stay the same.
    pub(crate) fixed_auditor: Option<Auditor>,
    /// Whether the run may add partitions to the topic and delete it at the end.
    pub(crate) may_change_topic: bool,
    /// The clock of PostgreSQL, if it can be set: a container has the clock of the machine.
    pub(crate) clock: Option<SteppedClock>,
    /// The directory of its logs, if it is removed with the system.
    pub(crate) logs: Option<PathBuf>,
    /// The directory whose guard kills the processes of this run.
    pub(crate) scratch: Scratch,
    /// The directory of the services, which lives as long as the system.
    pub(crate) _service_scratch: Option<Scratch>,
}

impl SystemUnderTest {
    /// An auditor with the current addresses: a container may have another one after a restart.
    ///
    /// # Errors
    /// If the addresses cannot be found.
    pub(crate) async fn auditor(&self) -> Result<Auditor, Error> {
        match &self.fixed_auditor {
            Some(auditor) => Ok(auditor.clone()),
            None => docker::auditor().await,
        }
    }
}
