//! Where the services of a running system are reached.

use crate::settings::Settings;

/// Where a running system is reached.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) patients: String,
    /// Every replica of patient-service by itself.
    pub(crate) patient_replicas: Vec<String>,
    /// Every replica of billing-service, over HTTP.
    pub(crate) billing: Vec<String>,
    /// Every analytics-service; each has partitions of its own.
    pub(crate) analytics: Vec<String>,
}

impl Addresses {
    /// Of a system that has one of each on the ports of the settings.
    pub(crate) fn of_single(settings: &Settings) -> Self {
        Self {
            patients: settings.patient_address(),
            patient_replicas: vec![settings.patient_address()],
            billing: vec![settings.billing_address()],
            analytics: settings.analytics_addresses(false),
        }
    }

    /// For the tests of a running system.
    pub(crate) fn as_words(&self) -> String {
        format!(
            "PATIENTS={} PATIENT_REPLICAS={} BILLING={} ANALYTICS={}",
            self.patients,
            self.patient_replicas.join(","),
            self.billing.join(","),
            self.analytics.join(",")
        )
    }
}
