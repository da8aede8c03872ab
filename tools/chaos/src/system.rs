//! The system under test.

use std::path::PathBuf;

use smol::lock::Mutex;
use testbed::{Scratch, StartError, audit::Places, clock::SteppedClock, http::Client};

use crate::{docker, parts::Part};

/// A system that runs.
pub(crate) struct SystemUnderTest {
    /// What it is, for the reader of a report.
    pub(crate) description: String,
    /// Its parts, with their names. The schedule knows them by their numbers.
    pub(crate) parts: Vec<(String, Mutex<Part>)>,
    /// Where clients reach patient-service: each replica, or all of them behind one address.
    pub(crate) clients: Vec<Client>,
    /// Where the audit finds its data, if the addresses stay the same.
    pub(crate) fixed: Option<Places>,
    /// Whether partitions can be added to its topic, and whether the topic may be deleted in the end.
    pub(crate) topic_is_ours: bool,
    /// The clock of PostgreSQL, if it can be set: a container has the machine's.
    pub(crate) clock: Option<SteppedClock>,
    /// The folder of its logs, if it is gone with the system.
    pub(crate) logs: Option<PathBuf>,
    /// Ends what was started for it.
    pub(crate) scratch: Scratch,
    /// What else lives as long as it does.
    pub(crate) _kept: Option<Scratch>,
}

impl SystemUnderTest {
    /// Where the audit finds its data. A container may have another address after a restart.
    ///
    /// # Errors
    /// If that cannot be told.
    pub(crate) async fn places(&self) -> Result<Places, StartError> {
        match &self.fixed {
            Some(places) => Ok(places.clone()),
            None => docker::places().await,
        }
    }
}
