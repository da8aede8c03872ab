use std::{path::PathBuf, time::Duration};

use config::{HostPort, HostPorts, Reader, Secret};

use crate::{Secure, address::Url};

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
    pub collector: Option<Collector>,
    /// What the stack's agent proves itself with; without it, there is no agent.
    pub agent_token: Option<Secret<String>>,
    /// Of a secure system: TLS to the services, and people who log in.
    pub secure: Option<Secure>,
    /// A folder whose files are served instead of those that are built in.
    pub assets: Option<PathBuf>,
}

/// A collector.
#[derive(Clone, Debug)]
pub struct Collector {
    pub(crate) url: Url,
    /// If the scheme of the URL is https.
    pub(crate) tls: Option<tls::Connector>,
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
        let secure = read_secure(reader);
        Self {
            http,
            secure,
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
            collector: read_collector(reader),
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

/// Reads where to forward, and the files of an https collector.
fn read_collector(reader: &mut Reader) -> Option<Collector> {
    const CERTIFICATE: &str = "CONSOLE_FORWARD_OTLP_CERTIFICATE";
    let about = "a collector that gets what the services export, the same bytes";
    let url: Option<Url> = reader.variable(&["CONSOLE_FORWARD_OTLP"], about).optional();
    let is_tls = url.as_ref().is_some_and(|url| url.is_tls);
    let variables = tls::ClientVariables {
        ca: &[CERTIFICATE],
        certificate: &["CONSOLE_FORWARD_OTLP_CLIENT_CERTIFICATE"],
        key: &["CONSOLE_FORWARD_OTLP_CLIENT_KEY"],
    };
    let used = if is_tls { Ok(()) } else { Err("the scheme of CONSOLE_FORWARD_OTLP is not https") };
    let files = tls::ClientSettings::read(reader, variables, used);
    let connector = is_tls.then(|| tls::Connector::new("collector", files, &["http/1.1"])).transpose();
    let tls = connector.unwrap_or_else(|error| {
        reader.reject(CERTIFICATE, "PEM files for TLS", error.to_string());
        None
    });
    Some(Collector { url: url?, tls })
}

/// Reads what a secure system needs: all of it, or nothing.
fn read_secure(reader: &mut Reader) -> Option<Secure> {
    const AUTH_SERVICE: &str = "CONSOLE_AUTH_SERVICE";
    let about = "where people log in, over https; without it nobody has to";
    let auth_service: Option<HostPort> = reader.variable(&[AUTH_SERVICE], about).optional();
    let is_secure = auth_service.is_some();
    let about = "PEM file with the authorities of the services, which are then reached over TLS";
    let ca: Option<String> = reader.variable(&["CONSOLE_TLS_CA"], about).used_if(is_secure).optional();
    let about = "JSON file with the email and the password of the console's own user";
    let user: Option<String> = reader.variable(&["CONSOLE_USER_FILE"], about).used_if(is_secure).optional();
    let mut operations = |names: &'static [&'static str]| -> Option<HostPorts> {
        reader.variable(names, "operations port of that service, if people log in").used_if(is_secure).optional()
    };
    let operations = [
        operations(&["PATIENT_SERVICE_OPERATIONS"]),
        operations(&["BILLING_SERVICE_OPERATIONS"]),
        operations(&["ANALYTICS_SERVICE_OPERATIONS"]),
    ];
    let auth_service = auth_service?;
    match (ca, user, operations) {
        (Some(ca), Some(user), [Some(patients), Some(billing), Some(analytics)]) => {
            Some(Secure { ca: ca.into(), auth_service, user: user.into(), operations: [patients, billing, analytics] })
        }
        _ => {
            let expected = "nothing without CONSOLE_TLS_CA, CONSOLE_USER_FILE and the three ..._OPERATIONS";
            reader.reject(AUTH_SERVICE, expected, "one of them is not set");
            None
        }
    }
}
