//! The addresses of a running system's services.

use crate::{home::Mode, settings::Settings};

/// The addresses of a running system's services.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) patients: String,
    /// The metrics of every replica of patient-service.
    pub(crate) patient_metrics: Vec<String>,
    /// The metrics of every replica of billing-service.
    pub(crate) billing_metrics: Vec<String>,
    /// Every analytics-service; each reads its own partitions.
    pub(crate) analytics: Vec<String>,
    /// Their metrics.
    pub(crate) analytics_metrics: Vec<String>,
}

impl Addresses {
    /// The addresses of a system with one of each service, on the ports in the settings.
    pub(crate) fn of_single(settings: &Settings, mode: Mode) -> Self {
        let metrics = |port: u16, operations: u16| {
            // Where callers have identities, metrics have a port of their own.
            vec![format!("127.0.0.1:{}", if mode == Mode::Secure { operations } else { port })]
        };
        Self {
            patients: settings.patient_address(),
            patient_metrics: metrics(settings.patient_port, settings.patient_operations_port),
            billing_metrics: metrics(settings.billing_port, settings.billing_operations_port),
            analytics: settings.analytics_addresses(false),
            analytics_metrics: metrics(settings.analytics_port, settings.analytics_operations_port),
        }
    }

    /// As variables, one in a line, for the tests of a running system.
    pub(crate) fn as_variables(&self) -> String {
        format!(
            "PATIENTS={}\nPATIENT_METRICS={}\nBILLING_METRICS={}\nANALYTICS={}\nANALYTICS_METRICS={}",
            self.patients,
            self.patient_metrics.join(","),
            self.billing_metrics.join(","),
            self.analytics.join(","),
            self.analytics_metrics.join(",")
        )
    }
}
