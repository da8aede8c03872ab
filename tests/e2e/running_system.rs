//! A running system, started by the test or by `just up`.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use testbed::http::{Access, Client};

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
    /// The same, for their metrics.
    pub(crate) analytics_metrics: Vec<Client>,
    /// Returns the whole log of a component.
    pub(crate) log: Box<dyn Fn(&str) -> String>,
}

impl RunningSystem {
    /// The system whose addresses `stack target` has printed; a secure one also has an authority and a user.
    pub(crate) fn of_target(target: &str, log: Box<dyn Fn(&str) -> String>) -> Self {
        let find = |name: &str| target.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let access = find("AUTHORITY").map(|authority| {
            let text = |name: &str| find(name).unwrap_or_else(|| panic!("no {name} in {target}"));
            let user: serde_json::Value =
                serde_json::from_str(&std::fs::read_to_string(text("USER_FILE")).unwrap()).unwrap();
            let (email, password) = (user["email"].as_str().unwrap(), user["password"].as_str().unwrap());
            Access::new(Path::new(authority)).unwrap().with_login(text("AUTH_SERVICE"), email, password)
        });
        let client = |address: &str| {
            let client = Client::new(address);
            access.as_ref().map_or(client.clone(), |access| client.with_access(access))
        };
        let clients = |name: &str| -> Vec<Client> {
            let list = find(name).unwrap_or_else(|| panic!("no {name} in {target}"));
            list.split(',').map(client).collect()
        };
        Self {
            patients: clients("PATIENTS").remove(0),
            replicas: clients("PATIENT_METRICS"),
            billing: clients("BILLING_METRICS"),
            analytics: clients("ANALYTICS"),
            analytics_metrics: clients("ANALYTICS_METRICS"),
            log,
        }
    }

    /// The sum of the counts of all analytics-services.
    pub(crate) async fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for client in &self.analytics {
            let summary = client
                .get("/analytics/summary?scope=instance")
                .await
                .map(|response| response.json())
                .unwrap_or_default();
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
