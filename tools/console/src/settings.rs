use std::{path::PathBuf, time::Duration};

use config::{HostPorts, Reader, Secret};

use crate::address::Url;

/// Everything that can be set from outside.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The HTTP server.
    pub http: web::Settings,
    /// Where patient-service answers HTTP; a name may have several addresses.
    pub patients: HostPorts,
    /// The same of billing-service.
    pub billing: HostPorts,
    /// The same of analytics-service.
    pub analytics: HostPorts,
    /// Where a browser reaches patient-service.
    pub patients_link: String,
    /// Where a browser reaches analytics-service.
    pub analytics_link: String,
    /// The user's own collector, which gets what the services export.
    pub collector: Option<Url>,
    /// What the stack's agent proves itself with; without it, there is no agent.
    pub agent_token: Option<Secret<String>>,
    /// A folder whose files are served instead of those that are built in.
    pub assets: Option<PathBuf>,
}

impl Settings {
    /// Reads every setting.
    pub fn read(reader: &mut Reader) -> Self {
        let mut http = web::Settings::read_open(reader, "4010");
        // Streams end with the console; nothing else takes long.
        http.limits.drain = http.limits.drain.min(Duration::from_secs(2));
        let assets: Option<String> = reader
            .variable(&["CONSOLE_ASSETS"], "folder whose files are served instead of those that are built in")
            .optional();
        Self {
            http,
            patients: reader
                .variable(&["PATIENT_SERVICE_HTTP"], "HTTP addresses of patient-service")
                .or("127.0.0.1:4000"),
            billing: reader
                .variable(&["BILLING_SERVICE_HTTP"], "HTTP addresses of billing-service")
                .or("127.0.0.1:4001"),
            analytics: reader
                .variable(&["ANALYTICS_SERVICE_HTTP"], "HTTP addresses of analytics-service")
                .or("127.0.0.1:4002"),
            patients_link: reader
                .variable(&["PATIENT_SERVICE_LINK"], "where a browser reaches patient-service")
                .or("http://127.0.0.1:4000"),
            analytics_link: reader
                .variable(&["ANALYTICS_SERVICE_LINK"], "where a browser reaches analytics-service")
                .or("http://127.0.0.1:4002"),
            collector: reader
                .variable(&["CONSOLE_FORWARD_OTLP"], "a collector that gets what the services export, the same bytes")
                .optional(),
            agent_token: reader
                .variable(
                    &["CONSOLE_AGENT_TOKEN"],
                    "token of the agent that injects faults; without it, none is let in",
                )
                .optional(),
            assets: assets.map(PathBuf::from),
        }
    }
}
