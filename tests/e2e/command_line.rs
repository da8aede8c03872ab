//! The command line and the settings of the services.

use std::process::{Command, Output};

use testbed::{output, service::binaries};

fn run(service: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binaries().unwrap().join(service));
    command.args(arguments).env_clear().envs(environment.iter().copied());
    output(&mut command).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const SERVICES: [&str; 3] = ["patient-service", "billing-service", "analytics-service"];

#[test]
fn help_lists_every_setting() {
    for service in SERVICES {
        let output = run(service, &["--help"], &[]);
        let help = text(&output.stdout);
        assert!(output.status.success() && help.contains(service));
        let tracing = "OTEL_EXPORTER_OTLP_ENDPOINT";
        for expected in ["SERVER_PORT", "LOG_LEVEL, LOGGING_LEVEL_ROOT", tracing, "healthcheck", "--print-config", "78"]
        {
            assert!(help.contains(expected), "{service}: {expected}");
        }
        let version = text(&run(service, &["--version"], &[]).stdout);
        assert!(version.starts_with(&format!("{service} {}", env!("CARGO_PKG_VERSION"))), "{version}");
        assert_eq!(run(service, &["--nonsense"], &[]).status.code(), Some(64));
    }
}

#[test]
fn every_invalid_setting_is_reported_and_the_exit_code_is_78() {
    let wrong = [
        ("SERVER_PORT", "70000"),
        ("DATABASE_URL", "mysql://root:hunter2@localhost/x"),
        ("KAFKA_BOOTSTRAP_SERVERS", "nowhere"),
        ("BILLING_DEADLINE", "soon"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector:4318"),
        ("LOG_LEVEL", "loud"),
    ];
    let output = run("patient-service", &[], &wrong);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{error}");
    for (name, _) in wrong {
        assert!(error.contains(&format!("{name}: expected ")), "{name} in {error}");
    }
    assert!(error.starts_with("patient-service: 6 settings are wrong"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    let missing = run("billing-service", &[], &[]);
    assert_eq!(missing.status.code(), Some(78));
    assert!(text(&missing.stderr).contains("DATABASE_URL") && text(&missing.stderr).contains("it is not set"));
}

#[test]
fn the_effective_configuration_is_printed_without_secrets() {
    let environment = [
        ("SPRING_DATASOURCE_URL", "jdbc:postgresql://db:5432/patients"),
        ("SPRING_DATASOURCE_PASSWORD", "hunter2"),
        ("SPRING_KAFKA_BOOTSTRAP_SERVERS", "kafka:9092"),
        ("LOGGING_LEVEL_ROOT", "DEBUG"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2"),
    ];
    let output = run("patient-service", &["--print-config"], &environment);
    let config = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for line in [
        "SERVER_PORT=4000",
        "DATABASE_URL=***",
        "SPRING_DATASOURCE_PASSWORD=***",
        "KAFKA_BOOTSTRAP_SERVERS=kafka:9092",
        "LOG_LEVEL=DEBUG",
        "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318",
        "OTEL_EXPORTER_OTLP_HEADERS=***",
    ] {
        assert!(config.lines().any(|found| found == line), "{line} in {config}");
    }
    assert!(!config.contains("hunter2"));
}

#[test]
fn the_health_check_of_a_service_that_does_not_run_fails() {
    let output = run("analytics-service", &["healthcheck"], &[("SERVER_PORT", "9")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no answer from 127.0.0.1:9"));
}

#[test]
fn a_port_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let environment =
        [("SERVER_PORT", port.as_str()), ("DATABASE_URL", "postgres://localhost/x"), ("LOG_FORMAT", "json")];
    let output = run("billing-service", &[], &environment);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(&format!("cannot listen on 127.0.0.1:{port}")), "{}", text(&output.stdout));
}
