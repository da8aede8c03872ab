use config::{Environment, Value as _};

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
    let wrong =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector:4318"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector")];
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
