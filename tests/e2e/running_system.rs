//! A running system, started by the test or by `just up`.

use std::time::{Duration, Instant};

use testbed::http::Client;

use crate::support::TIMEOUT;

/// Clients and logs of a running system.
pub(crate) struct RunningSystem {
    /// patient-service, or the balancer before its replicas.
    pub(crate) patients: Client,
    /// Every replica of patient-service, for its metrics.
    pub(crate) replicas: Vec<Client>,
    /// Every billing-service, for its metrics.
    pub(crate) billing: Vec<Client>,
    /// Every analytics-service; each reads its own partitions.
    pub(crate) analytics: Vec<Client>,
    /// Returns the whole log of a component.
    pub(crate) log: Box<dyn Fn(&str) -> String>,
}

impl RunningSystem {
    /// The sum of the counts of all analytics-services.
    pub(crate) async fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for client in &self.analytics {
            let summary = client.get("/analytics/summary").await.map(|response| response.json()).unwrap_or_default();
            let count = |name: &str| summary[name].as_i64().unwrap_or_default();
            counts.active += count("activePatients");
            counts.created += count("created");
            counts.updated += count("updated");
            counts.deleted += count("deleted");
        }
        counts
    }

    /// Waits until the counts of analytics are exactly `before` plus `more`. Fails if they do not change for [`TIMEOUT`].
    pub(crate) async fn until_counted(&self, before: Counts, more: Counts) {
        let (mut last, mut end) = (Counts::default(), Instant::now() + TIMEOUT);
        loop {
            let counts = self.counts().await - before;
            if counts == more {
                return;
            }
            if counts != last {
                (last, end) = (counts, Instant::now() + TIMEOUT);
            }
            assert!(Instant::now() < end, "analytics counts {counts:?} more, not {more:?}");
            smol::Timer::after(Duration::from_millis(10)).await;
        }
    }

    /// The number of patients in the registry.
    pub(crate) async fn stored(&self) -> i64 {
        let page = self.patients.get("/patients?page=1&size=1").await.unwrap().json();
        page["totalElements"].as_i64().unwrap()
    }
}

/// The counts of analytics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) active: i64,
    pub(crate) created: i64,
    pub(crate) updated: i64,
    pub(crate) deleted: i64,
}

impl std::ops::Sub for Counts {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            active: self.active - other.active,
            created: self.created - other.created,
            updated: self.updated - other.updated,
            deleted: self.deleted - other.deleted,
        }
    }
}
