use std::{collections::BTreeMap, time::Duration};

use config::{Field, Invalid, Reader, Secret};
use surf::Url;
use telemetry::sampler::{Ratio, Sampler, SamplerKind};

mod values;

pub(crate) use values::Headers;
use values::{Endpoint, Exporter, Flag, Pairs, Protocol};

/// The settings of the export, by the variables of the OpenTelemetry specification.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Without it no span is recorded.
    pub(crate) traces: Option<Destination>,
    pub(crate) metrics: Option<Destination>,
    pub(crate) logs: Option<Destination>,
    /// Which traces are recorded.
    pub(crate) sampler: Sampler,
    /// Time between two exports of the metrics.
    pub(crate) interval: Duration,
    /// Resource attributes.
    pub(crate) resource: BTreeMap<String, String>,
    /// Variables with wrong values, which count as not set.
    pub(crate) warnings: Vec<Invalid>,
}

/// A collector of one signal.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) url: Url,
    /// If the scheme of the URL is https.
    pub(crate) tls: Option<tls::Connector>,
    pub(crate) headers: Secret<Headers>,
    /// Timeout of one attempt.
    pub(crate) timeout: Duration,
    /// How long a partial batch waits for more items.
    pub(crate) delay: Duration,
}

/// How long a partial batch waits for more items, unless a setting says it: less than the specification's 5 s.
const DELAY: Duration = Duration::from_secs(1);

/// The variables of one signal.
struct Signal {
    path: &'static str,
    exporter: &'static [&'static str],
    endpoint: &'static [&'static str],
    headers: &'static [&'static str],
    timeout: &'static [&'static str],
    protocol: &'static [&'static str],
    /// How long an item waits for others; metrics have their interval instead.
    delay: Option<&'static [&'static str]>,
}

const TRACES: Signal = Signal {
    path: "v1/traces",
    exporter: &["OTEL_TRACES_EXPORTER"],
    endpoint: &["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"],
    headers: &["OTEL_EXPORTER_OTLP_TRACES_HEADERS"],
    timeout: &["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"],
    protocol: &["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"],
    delay: Some(&["OTEL_BSP_SCHEDULE_DELAY"]),
};

const METRICS: Signal = Signal {
    path: "v1/metrics",
    exporter: &["OTEL_METRICS_EXPORTER"],
    endpoint: &["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"],
    headers: &["OTEL_EXPORTER_OTLP_METRICS_HEADERS"],
    timeout: &["OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"],
    protocol: &["OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"],
    delay: None,
};

const LOGS: Signal = Signal {
    path: "v1/logs",
    exporter: &["OTEL_LOGS_EXPORTER"],
    endpoint: &["OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"],
    headers: &["OTEL_EXPORTER_OTLP_LOGS_HEADERS"],
    timeout: &["OTEL_EXPORTER_OTLP_LOGS_TIMEOUT"],
    protocol: &["OTEL_EXPORTER_OTLP_LOGS_PROTOCOL"],
    delay: Some(&["OTEL_BLRP_SCHEDULE_DELAY"]),
};

/// The settings of every signal that does not have its own.
struct General {
    endpoint: Option<Endpoint>,
    headers: Secret<Headers>,
    timeout: Duration,
    tls: Option<tls::Connector>,
}

impl Settings {
    /// Reads the variables. `service` is the name of the service, unless they give another one.
    ///
    /// A wrong value is a warning and counts as not set, as the specification demands. Only a wrong endpoint is an
    /// error, because nothing could be sent to it. Without an endpoint, or with `OTEL_SDK_DISABLED`, no other variable
    /// is read.
    pub fn read(reader: &mut Reader, service: &'static str) -> Self {
        let disabled: Flag =
            reader.variable(&["OTEL_SDK_DISABLED"], "true: nothing is exported or recorded").lenient().or("false");
        let enabled = !disabled.0;
        let about = "collector to which traces, metrics and log lines are exported";
        let endpoint = reader.variable(&["OTEL_EXPORTER_OTLP_ENDPOINT"], about).used_if(enabled).optional();
        let own_endpoints = [&TRACES, &METRICS, &LOGS].map(|signal| {
            let about = "URL of the collector for this signal alone, with its path";
            reader.variable(signal.endpoint, about).used_if(enabled).optional()
        });
        let used = endpoint.is_some() || own_endpoints.iter().any(Option::is_some);
        let mut variables = Variables { reader, used };

        let headers = variables.field(&["OTEL_EXPORTER_OTLP_HEADERS"], "headers of the exports").optional();
        let timeout = variables.field(&["OTEL_EXPORTER_OTLP_TIMEOUT"], "timeout of one export").or("10s");
        let _: Protocol =
            variables.field(&["OTEL_EXPORTER_OTLP_PROTOCOL"], "protocol of the exports").or("http/protobuf");
        let is_tls = endpoint.iter().chain(own_endpoints.iter().flatten()).any(|Endpoint(url)| url.scheme() == "https");
        let tls = connector(&mut variables, is_tls);
        let general = General { endpoint, headers: headers.unwrap_or_default(), timeout, tls };
        let [traces, metrics, logs] = own_endpoints;
        let traces = general.signal(&mut variables, &TRACES, traces);
        let metrics = general.signal(&mut variables, &METRICS, metrics);
        let logs = general.signal(&mut variables, &LOGS, logs);
        let sampler = sampler(&mut variables);
        let interval =
            variables.field(&["OTEL_METRIC_EXPORT_INTERVAL"], "time between two exports of metrics").or("60s");
        let resource = resource(&mut variables, service);
        Self { traces, metrics, logs, sampler, interval, resource, warnings: reader.take_warnings() }
    }
}

/// Reads the variables that apply only if something is sent.
struct Variables<'a> {
    reader: &'a mut Reader,
    /// Whether any signal has an endpoint.
    used: bool,
}

impl Variables<'_> {
    fn field(&mut self, names: &'static [&'static str], about: &'static str) -> Field<'_> {
        self.reader.variable(names, about).lenient().used_if(self.used)
    }
}

/// What makes the handshakes with collectors, if one is reached over TLS. Files that are not valid are an error, as a wrong
/// endpoint is: nothing could be sent.
fn connector(variables: &mut Variables<'_>, is_tls: bool) -> Option<tls::Connector> {
    const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    let about = "PEM file with the authorities of an https collector, instead of the public ones";
    let ca: Option<String> = variables.field(&[CERTIFICATE], about).optional();
    let about = "PEM file with the certificate chain that an https collector is shown";
    let certificate: Option<String> = variables.field(&["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"], about).optional();
    let about = "PEM file with the key of that certificate";
    let key: Option<String> = variables.field(&["OTEL_EXPORTER_OTLP_CLIENT_KEY"], about).optional();
    if !is_tls {
        return None;
    }
    if certificate.is_some() != key.is_some() {
        variables.reader.reject("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "a certificate and its key", "one is missing");
        return None;
    }
    let identity = certificate.zip(key).map(|(certificate, key)| (certificate.into(), key.into()));
    let files = tls::ClientSettings { ca: ca.map(Into::into), identity };
    match web_client::connector("collector", files) {
        Ok(connector) => Some(connector),
        Err(error) => {
            variables.reader.reject(CERTIFICATE, "PEM files for TLS", error.to_string());
            None
        }
    }
}

fn sampler(variables: &mut Variables<'_>) -> Sampler {
    let kind: SamplerKind =
        variables.field(&["OTEL_TRACES_SAMPLER"], "which traces are recorded").or("parentbased_always_on");
    let ratio: Ratio = variables
        .field(&["OTEL_TRACES_SAMPLER_ARG"], "the share of them, for the samplers with a traceidratio")
        .or("1.0");
    Sampler::new(kind, ratio)
}

/// The resource attributes.
fn resource(variables: &mut Variables<'_>, service: &'static str) -> BTreeMap<String, String> {
    let name: Option<String> = variables
        .field(&["OTEL_SERVICE_NAME"], "name of the service in exported data, instead of the program's")
        .optional();
    let attributes: Option<Pairs> =
        variables.field(&["OTEL_RESOURCE_ATTRIBUTES"], "further resource attributes").optional();
    let mut resource = BTreeMap::from(
        [
            ("service.name", service.to_owned()),
            // The version of the workspace is that of each service.
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("service.instance.id", format!("{:032x}", fastrand::u128(..))),
            ("telemetry.sdk.language", "rust".to_owned()),
            ("telemetry.sdk.name", env!("CARGO_PKG_NAME").to_owned()),
            ("telemetry.sdk.version", env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    resource.extend(attributes.unwrap_or_default().0);
    resource.extend(name.map(|name| ("service.name".to_owned(), name)));
    resource
}

impl General {
    /// Where this signal is sent, if it is.
    fn signal(&self, variables: &mut Variables<'_>, signal: &Signal, own: Option<Endpoint>) -> Option<Destination> {
        let exporter: Exporter = variables.field(signal.exporter, "none: this signal is not exported").or("otlp");
        let headers = variables.field(signal.headers, "headers of its exports").optional();
        let timeout = variables.field(signal.timeout, "timeout of one export of this signal").optional();
        let _: Option<Protocol> = variables.field(signal.protocol, "protocol of its exports").optional();
        let about = "delay between two exports of this signal";
        let delay = signal.delay.map_or(DELAY, |names| variables.field(names, about).or("1s"));
        let general = || self.endpoint.clone().map(|endpoint| endpoint.join(signal.path));
        let url = own.map(|Endpoint(url)| url).or_else(general).filter(|_| exporter == Exporter::Otlp)?;
        let headers = headers.unwrap_or_else(|| self.headers.clone());
        let tls = self.tls.clone().filter(|_| url.scheme() == "https");
        Some(Destination { url, tls, headers, timeout: timeout.unwrap_or(self.timeout), delay })
    }
}

#[cfg(test)]
mod tests;
