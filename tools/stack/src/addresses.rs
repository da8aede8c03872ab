//! The addresses of a running system's services.

use crate::settings::Settings;

/// The addresses of a running system's services.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) patients: String,
    /// Every replica of patient-service.
    pub(crate) patient_replicas: Vec<String>,
    /// Every replica of billing-service, over HTTP.
    pub(crate) billing: Vec<String>,
    /// Every analytics-service; each reads its own partitions.
    pub(crate) analytics: Vec<String>,
}

impl Addresses {
    /// The addresses of a system with one of each service, on the ports in the settings.
    pub(crate) fn of_single(settings: &Settings) -> Self {
        Self {
            patients: settings.patient_address(),
            patient_replicas: vec![settings.patient_address()],
            billing: vec![settings.billing_address()],
            analytics: settings.analytics_addresses(false),
        }
    }

    /// As variables, for the tests of a running system.
    pub(crate) fn as_variables(&self) -> String {
        format!(
            "PATIENTS={} PATIENT_REPLICAS={} BILLING={} ANALYTICS={}",
            self.patients,
            self.patient_replicas.join(","),
            self.billing.join(","),
            self.analytics.join(",")
        )
    }
}
