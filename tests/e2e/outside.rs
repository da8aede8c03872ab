//! A system as its users see it, whoever started it.

use std::time::{Duration, Instant};

use testbed::http::Client;

use crate::support::TIMEOUT;

/// Where a system is reached.
pub(crate) struct Outside {
    /// patient-service, or the balancer before its replicas.
    pub(crate) patients: Client,
    /// Every replica of patient-service, for its metrics.
    pub(crate) replicas: Vec<Client>,
    /// Every billing-service, for its metrics.
    pub(crate) billing: Vec<Client>,
    /// Every analytics-service; each counts the patients of its own partitions.
    pub(crate) analytics: Vec<Client>,
    /// All that a part has logged.
    pub(crate) log: Box<dyn Fn(&str) -> String>,
}

impl Outside {
    /// What all analytics-services count together.
    pub(crate) async fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for client in &self.analytics {
            let summary = client.get("/analytics/summary").await.map(|answer| answer.json()).unwrap_or_default();
            let count = |name: &str| summary[name].as_i64().unwrap_or_default();
            counts.active += count("activePatients");
            counts.created += count("created");
            counts.updated += count("updated");
            counts.deleted += count("deleted");
        }
        counts
    }

    /// Waits until analytics has counted so much more than `before`, and no more than that; as long as it gets on.
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

    /// How many patients the registry holds.
    pub(crate) async fn stored(&self) -> i64 {
        let page = self.patients.get("/patients?page=1&size=1").await.unwrap().json();
        page["totalElements"].as_i64().unwrap()
    }
}

/// What analytics counts.
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
