use std::{collections::BTreeMap, str::FromStr as _, time::Duration};

use config::{Field, Invalid, Reader, Secret, Value};
use percent_encoding::percent_decode_str;
use surf::{
    Url,
    http::headers::{HeaderName, HeaderValue},
};
use telemetry::sampler::{Ratio, Sampler, SamplerKind};

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
            reader.variable(&["OTEL_SDK_DISABLED"], "true: nothing is sent or recorded").lenient().or("false");
        let enabled = !disabled.0;
        let about = "collector that traces, metrics and log lines are sent to";
        let endpoint = reader.variable(&["OTEL_EXPORTER_OTLP_ENDPOINT"], about).used_if(enabled).optional();
        let own_endpoints = [&TRACES, &METRICS, &LOGS].map(|signal| {
            let about = "collector of this signal alone, with the whole path";
            reader.variable(signal.endpoint, about).used_if(enabled).optional()
        });
        let used = endpoint.is_some() || own_endpoints.iter().any(Option::is_some);
        let mut variables = Variables { reader, used };

        let headers = variables.field(&["OTEL_EXPORTER_OTLP_HEADERS"], "headers for the collector").optional();
        let timeout = variables.field(&["OTEL_EXPORTER_OTLP_TIMEOUT"], "time for one sending").or("10s");
        let _: Protocol = variables.field(&["OTEL_EXPORTER_OTLP_PROTOCOL"], "form of what is sent").or("http/protobuf");
        let is_tls = endpoint.iter().chain(own_endpoints.iter().flatten()).any(|Endpoint(url)| url.scheme() == "https");
        let tls = connector(&mut variables, is_tls);
        let general = General { endpoint, headers: headers.unwrap_or_default(), timeout, tls };
        let [traces, metrics, logs] = own_endpoints;
        let traces = general.signal(&mut variables, &TRACES, traces);
        let metrics = general.signal(&mut variables, &METRICS, metrics);
        let logs = general.signal(&mut variables, &LOGS, logs);
        let sampler = sampler(&mut variables);
        let interval =
            variables.field(&["OTEL_METRIC_EXPORT_INTERVAL"], "time between two sendings of metrics").or("60s");
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
        .field(&["OTEL_SERVICE_NAME"], "name of the service in what is sent, instead of the program's")
        .optional();
    let attributes: Option<Pairs> =
        variables.field(&["OTEL_RESOURCE_ATTRIBUTES"], "what else is true of all that is sent").optional();
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
        let exporter: Exporter = variables.field(signal.exporter, "none: this signal is not sent").or("otlp");
        let headers = variables.field(signal.headers, "headers for it").optional();
        let timeout = variables.field(signal.timeout, "time for one sending to it").optional();
        let _: Option<Protocol> = variables.field(signal.protocol, "form of what it is sent").optional();
        let about = "time that an item of it waits for others";
        let delay = signal.delay.map_or(DELAY, |names| variables.field(names, about).or("1s"));
        let general = || self.endpoint.clone().map(|endpoint| endpoint.join(signal.path));
        let url = own.map(|Endpoint(url)| url).or_else(general).filter(|_| exporter == Exporter::Otlp)?;
        let headers = headers.unwrap_or_else(|| self.headers.clone());
        let tls = self.tls.clone().filter(|_| url.scheme() == "https");
        Some(Destination { url, tls, headers, timeout: timeout.unwrap_or(self.timeout), delay })
    }
}

/// A boolean as the specification has it: true in any case of its letters.
struct Flag(bool);

impl Value for Flag {
    const EXPECTED: &'static str = "true or false";

    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" => Ok(Self(true)),
            "false" => Ok(Self(false)),
            _ => Err("it is neither".to_owned()),
        }
    }
}

/// A value of `OTEL_TRACES_EXPORTER` and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exporter {
    Otlp,
    None,
}

impl Value for Exporter {
    const EXPECTED: &'static str = "otlp or none";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "otlp" => Ok(Self::Otlp),
            "none" => Ok(Self::None),
            _ => Err("it is not a supported exporter".to_owned()),
        }
    }
}

/// The URL of a collector.
#[derive(Clone, Debug)]
struct Endpoint(Url);

impl Endpoint {
    /// The URL of one signal, as the specification has it: appended to the path, whether that ends with a slash or not.
    fn join(self, signal: &str) -> Url {
        let Self(mut url) = self;
        let path = format!("{}/{signal}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }
}

impl Value for Endpoint {
    const EXPECTED: &'static str = "http://host:port or https://host:port, with a path or without";

    fn parse(text: &str) -> Result<Self, String> {
        // The parser's message does not quote the URL, which may contain a password.
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        if !web_client::SCHEMES.contains(&url.scheme()) {
            return Err(format!("its scheme is not {}", web_client::SCHEMES.join(" or ")));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("it names no host".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it holds a user; use OTEL_EXPORTER_OTLP_HEADERS".to_owned());
        }
        Ok(Self(url))
    }
}

/// The only supported value of `OTEL_EXPORTER_OTLP_PROTOCOL`.
struct Protocol;

impl Value for Protocol {
    const EXPECTED: &'static str = "http/protobuf, the only one supported";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "http/protobuf" { Ok(Self) } else { Err("it is not supported".to_owned()) }
    }
}

/// Key-value pairs: `name=value,name=value`, percent-encoded.
#[derive(Clone, Debug, Default)]
struct Pairs(BTreeMap<String, String>);

impl Value for Pairs {
    const EXPECTED: &'static str = "name=value, or several of them separated by commas; percent-encoded";

    fn parse(text: &str) -> Result<Self, String> {
        let mut pairs = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("a part of it has no =")?;
            let decode = |text: &str| percent_decode_str(text.trim()).decode_utf8().map(|text| text.into_owned());
            let (Ok(name), Ok(value)) = (decode(name), decode(value)) else {
                return Err("a part of it is no text".to_owned());
            };
            if name.is_empty() {
                return Err("a part of it has no name".to_owned());
            }
            pairs.insert(name, value);
        }
        Ok(Self(pairs))
    }
}

/// HTTP headers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers(pub(crate) Vec<(HeaderName, HeaderValue)>);

impl Value for Headers {
    const EXPECTED: &'static str = Pairs::EXPECTED;

    fn parse(text: &str) -> Result<Self, String> {
        let header = |(name, value): (String, String)| {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
            // The types accept any ASCII, including line breaks.
            let name = HeaderName::from_str(&name).ok().filter(|_| name.bytes().all(token));
            let value = HeaderValue::from_str(&value).ok().filter(|_| value.bytes().all(printable));
            name.zip(value).ok_or_else(|| "a part of it cannot be a header".to_owned())
        };
        Pairs::parse(text)?.0.into_iter().map(header).collect::<Result<_, String>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use config::Environment;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<(Settings, String), String> {
        let environment = variables.iter().fold(Environment::empty(), |all, (name, value)| all.with(*name, *value));
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader, "test-service");
        let (settings, report) = reader.finish(settings).map_err(|errors| errors.to_string())?;
        Ok((settings, report.values()))
    }

    fn traces(variables: &[(&str, &str)]) -> Option<String> {
        read(variables).unwrap().0.traces.map(|destination| destination.url.into())
    }

    #[test]
    fn the_signal_path_is_appended_to_the_general_endpoint_alone() {
        assert_eq!(traces(&[]), None);
        for (base, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("http://collector/otlp", "http://collector/otlp/v1/traces"),
            ("http://[::1]:4318/otlp/", "http://[::1]:4318/otlp/v1/traces"),
        ] {
            assert_eq!(traces(&[("OTEL_EXPORTER_OTLP_ENDPOINT", base)]).as_deref(), Some(expected));
        }
        for (own, expected) in [("http://other:1", "http://other:1/"), ("http://other:1/x", "http://other:1/x")] {
            let variables =
                [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", own)];
            assert_eq!(traces(&variables).as_deref(), Some(expected));
        }
    }

    #[test]
    fn each_signal_has_its_path_and_can_be_left_out() {
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let (all, _) = read(&[base]).unwrap();
        let urls = [all.traces, all.metrics, all.logs].map(|destination| destination.unwrap().url.to_string());
        assert_eq!(urls, ["traces", "metrics", "logs"].map(|signal| format!("http://collector:4318/v1/{signal}")));
        let (some, _) = read(&[base, ("OTEL_LOGS_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "otlp")]).unwrap();
        assert!(some.traces.is_some() && some.metrics.is_some() && some.logs.is_none());
    }

    #[test]
    fn names_headers_and_attributes_are_decoded() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=general"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=Basic%20dTpw, x-tenant=a%2Cb"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
        ];
        let (settings, shown) = read(&variables).unwrap();
        let headers = |destination: &Option<Destination>| -> Vec<_> {
            let headers = destination.as_ref().unwrap().headers.expose().0.iter();
            headers.map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let pairs = |pairs: &[(&str, &str)]| -> Vec<_> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(headers(&settings.traces), pairs(&[("authorization", "Basic dTpw"), ("x-tenant", "a,b")]));
        assert_eq!(headers(&settings.logs), pairs(&[("x-tenant", "general")]));
        assert_eq!(settings.traces.as_ref().unwrap().timeout, Duration::from_millis(1500));
        assert_eq!(settings.resource["deployment.environment.name"], "test");
        assert_eq!(settings.resource["service.name"], "other");
        assert!(shown.contains("OTEL_EXPORTER_OTLP_TRACES_HEADERS=***\n"), "{shown}");
        assert!(!format!("{settings:?}{shown}").contains("dTpw"));
        let named =
            read(&[variables[0], ("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other")]);
        assert_eq!(named.unwrap().0.resource["service.name"], "mine");
        assert_eq!(read(&[]).unwrap().0.resource["service.name"], "test-service");
    }

    #[test]
    fn a_wrong_value_is_one_warning_and_counts_as_not_set() {
        let wrong = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_TRACES_EXPORTER", "console"),
            ("OTEL_METRICS_EXPORTER", "prometheus"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "often"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=x"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_SDK_DISABLED", "yes"),
        ];
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let variables: Vec<_> = wrong.into_iter().chain([endpoint]).collect();
        let (settings, shown) = read(&variables).expect("the service starts");
        let warnings: Vec<_> = settings.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), wrong.len(), "{warnings:?}");
        for (name, _) in wrong {
            let about = |warning: &&String| warning.starts_with(&format!("{name}: expected "));
            assert_eq!(warnings.iter().filter(about).count(), 1, "{name} in {warnings:?}");
        }
        assert!(!format!("{warnings:?}{settings:?}{shown}").contains("hunter2"));
        let (without, _) = read(&[endpoint]).unwrap();
        let urls = |settings: &Settings| {
            [&settings.traces, &settings.metrics, &settings.logs].map(|one| one.as_ref().map(|one| one.url.to_string()))
        };
        assert_eq!(urls(&settings), urls(&without));
        assert_eq!((settings.sampler, settings.interval), (without.sampler, without.interval));
        for header in ["a b=c", "a=\u{e9}", "a=b%0d%0ac"] {
            let (settings, _) = read(&[endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", header)]).unwrap();
            assert_eq!(settings.warnings.len(), 1, "{header}");
        }
    }

    #[test]
    fn a_wrong_endpoint_is_an_error() {
        let wrong = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector"),
        ];
        let errors = read(&wrong).err().unwrap();
        for (name, _) in wrong {
            assert!(errors.contains(&format!("{name}: expected ")), "{name} in {errors}");
        }
        let errors = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hunter2@collector")]).err().unwrap();
        assert!(!errors.contains("hunter2"), "{errors}");
    }

    #[test]
    fn a_collector_over_https_has_authorities_and_one_over_http_ignores_them() {
        let https = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318");
        let missing = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem");
        assert!(read(&[https]).unwrap().0.traces.unwrap().tls.is_some(), "the public authorities");
        let errors = read(&[https, missing]).err().unwrap();
        assert!(errors.contains("OTEL_EXPORTER_OTLP_CERTIFICATE") && errors.contains("/nowhere/ca.pem"), "{errors}");
        let errors = read(&[https, ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key")]).err().unwrap();
        assert!(errors.contains("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"), "{errors}");
        let http = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let mixed = read(&[http, missing]).unwrap().0;
        assert!(mixed.traces.unwrap().tls.is_none());
    }

    #[test]
    fn nothing_is_read_without_an_endpoint_or_when_it_is_disabled() {
        let wrong = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "console"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ];
        let (settings, shown) = read(&wrong).unwrap();
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
        assert!(settings.traces.is_none() && settings.metrics.is_none() && settings.logs.is_none());
        assert!(shown.contains("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf\n"), "{shown}");
        for disabled in ["true", "TRUE"] {
            let mut variables = wrong.to_vec();
            variables.push(("OTEL_SDK_DISABLED", disabled));
            variables.push(("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"));
            variables.push(("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "collector"));
            let (settings, _) = read(&variables).unwrap();
            assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
            assert!(settings.traces.is_none() && settings.metrics.is_none() && settings.logs.is_none());
        }
    }

    #[test]
    fn the_sampler_is_the_one_that_is_set() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let sampler = |kind, ratio| {
            let variables = [endpoint, ("OTEL_TRACES_SAMPLER", kind), ("OTEL_TRACES_SAMPLER_ARG", ratio)];
            read(&variables).unwrap().0.sampler
        };
        let expected = |kind, ratio| Sampler::new(SamplerKind::parse(kind).unwrap(), Ratio::parse(ratio).unwrap());
        assert_eq!(sampler("traceidratio", "0.25"), expected("traceidratio", "0.25"));
        assert_eq!(sampler("always_off", ""), expected("always_off", "1"));
        assert_eq!(read(&[endpoint]).unwrap().0.sampler, Sampler::default());
    }
}
