//! Invalid settings, and valid ones of unreachable servers.

use std::process::Command;

use testbed::{
    Scratch, output, ports,
    service::{Launch, Service, binaries},
    sql,
};

use crate::support::{logged, readiness, until_metric, until_readiness};

/// An address at which no process listens.
const UNREACHABLE: &str = "127.0.0.1:9";

#[test]
fn every_invalid_value_of_every_service_is_reported_and_the_exit_code_is_78() {
    let wrong: [(&str, &[(&str, &str)]); 3] = [
        (
            "patient-service",
            &[
                ("SERVER_PORT", "70000"),
                ("DATABASE_URL", "mysql://root:hunter2@localhost/x"),
                ("KAFKA_BOOTSTRAP_SERVERS", "nowhere"),
                ("BILLING_SERVICE_GRPC_PORT", "billing"),
                ("RELAY_LEASE", "soon"),
                ("BILLING_DEADLINE", "100000000h"),
                ("OUTBOX_SHARDS", "0"),
                ("KAFKA_TOPIC_CLEANUP_POLICY", "shred"),
                ("EXECUTOR_THREADS", "many"),
                ("HTTP_HOSTS", "a:80"),
                ("CORS_ORIGINS", "*"),
                ("HTTP_TRACE_CALLERS", "some"),
                ("OPERATIONS_PORT", "x"),
                ("OPERATIONS_ADDRESS", "somewhere"),
                ("AUTH_OFF_ON_NETWORK", "maybe"),
            ],
        ),
        ("billing-service", &[("GRPC_SERVER_PORT", "-1"), ("DATABASE_URL", "hunter2"), ("DATABASE_CONNECTIONS", "0")]),
        (
            "analytics-service",
            &[
                ("PARTITIONS", "3/3"),
                ("ON_OFFSET_LOSS", "ignore"),
                ("KAFKA_DEADLINE", "soon"),
                ("AUTH", "basic"),
                // That of events.
                ("KAFKA_DEAD_LETTER_TOPIC", "patient"),
            ],
        ),
    ];
    for (service, settings) in wrong {
        let binary = binaries().unwrap().join(service);
        let output = output(Command::new(binary).env_clear().envs(settings.iter().copied())).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{service}: {error}");
        assert!(error.starts_with(&format!("{service}: {} settings are wrong", settings.len())), "{error}");
        for (name, _) in settings {
            assert!(error.contains(&format!("{name}: expected ")), "{name} in {error}");
        }
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn unsupported_postgresql_options_are_rejected_with_exit_code_78() {
    let url = "postgres://jane@localhost/x";
    let wrong = [
        ("?ssl=maybe", None, "ssl: it is neither true nor false"),
        ("?sslmode=require&sslrootcert=/none/ca.pem", None, "/none/ca.pem cannot be read"),
        ("?currentschema=app", None, "currentschema is not supported; these are: host"),
        ("?options=-c%20lock_timeout%3D0%20-c%20statement_timeout%3D0", None, "DATABASE_DEADLINE"),
        ("", Some(("PGSSLMODE", "verify-full")), "PGSSLMODE: expected disable, allow or prefer"),
        ("", Some(("PGOPTIONS", "-c geqo=off")), "PGOPTIONS: expected nothing"),
    ];
    for service in ["patient-service", "billing-service"] {
        for (parameters, variable, message) in wrong {
            let binary = binaries().unwrap().join(service);
            let database = ("DATABASE_URL", format!("{url}{parameters}"));
            let mut command = Command::new(binary);
            command.env_clear().envs([database]).envs(variable).arg("--print-config");
            let output = output(&mut command).unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(78), "{service} {parameters}: {error}");
            assert!(error.contains(message) && !error.contains("jane"), "{service} {parameters}: {error}");
        }
    }
}

/// Exit code and log of the process, not of the library alone.
#[test]
fn an_unusable_database_ends_the_service_with_exit_code_78() {
    runtime::block_on(2, async {
        for (service, table) in [("patient-service", "patients"), ("billing-service", "accounts")] {
            let url = testbed::shared_database().await;
            sql::execute(&url, format!("CREATE TABLE {table} (theirs text)").leak()).await.unwrap();
            let binary = binaries().unwrap().join(service);
            let settings = [("DATABASE_URL", &*url), ("SERVER_PORT", "0"), ("GRPC_SERVER_PORT", "0")];
            let mut command = Command::new(binary);
            command.env_clear().envs(settings).env("KAFKA_BOOTSTRAP_SERVERS", UNREACHABLE).env("LOG_FORMAT", "json");
            let output = smol::unblock(move || output(&mut command)).await.unwrap();
            let log = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(78), "{service}: {log}");
            let message = |line: &&str| line.contains("the service cannot work on this database");
            let lines: Vec<_> = log.lines().filter(message).collect();
            assert!(lines.len() == 1 && lines[0].contains("already exists"), "{service}: {log}");
        }
    });
}

#[test]
fn every_form_of_an_address_is_accepted_or_rejected_at_startup() {
    let database = ("DATABASE_URL", "postgres://nobody@localhost/nothing");
    let run = |service: &str, name: &str, value: &str, arguments: &[&str]| {
        let mut command = Command::new(binaries().unwrap().join(service));
        command.env_clear().envs([database, (name, value), ("AUTH_OFF_ON_NETWORK", "yes")]);
        output(command.args(arguments)).unwrap()
    };
    let cases: [(&str, &str, &[&str], &[&str]); 5] = [
        (
            "patient-service",
            "BILLING_SERVICE_ADDRESS",
            &[
                "billing-service",
                "billing-service:9001",
                "http://billing-service",
                "http://billing-service:9001/",
                "https://billing-service:9001",
                "dns:///billing-service:9001",
                "[::1]:9001",
                "ipv4:127.0.0.1:9001",
            ],
            &[
                "billing-service:0",
                "::1",
                "http://billing-service/api",
                "unix:/run/billing.sock",
                "a:1,b:1",
                "http://user:hunter2@billing-service",
            ],
        ),
        (
            "analytics-service",
            "KAFKA_BOOTSTRAP_SERVERS",
            &["kafka:9092", "PLAINTEXT://kafka:9092", "kafka-1:9092,PLAINTEXT://[::1]:9093"],
            &[
                "kafka",
                "SSL://kafka:9093",
                "SASL_PLAINTEXT://kafka:9092",
                "http://kafka:9092",
                "::1:9092",
                "kafka:9092,",
            ],
        ),
        (
            "billing-service",
            "GRPC_SERVER_ADDRESS",
            &["0.0.0.0", "::", "[::1]", "localhost"],
            &["0.0.0.0:9001", "billing.example.org", "*", "http://0.0.0.0"],
        ),
        ("analytics-service", "SERVER_ADDRESS", &["127.0.0.1", "[::]"], &["127.0.0.1:4002", "example.org"]),
        (
            "analytics-service",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            &["http://collector:4318", "http://[::1]:4318/otlp", "https://collector:4318"],
            &["ftp://collector:4318", "collector:4318", "http://", "http://user:hunter2@collector:4318"],
        ),
    ];
    for (service, name, right, wrong) in cases {
        for value in right {
            let output = run(service, name, value, &["--print-config"]);
            assert!(output.status.success(), "{name}={value}: {}", String::from_utf8_lossy(&output.stderr));
        }
        for value in wrong {
            let output = run(service, name, value, &[]);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(78), "{name}={value}: {error}");
            assert!(
                error.contains(&format!("{name}: expected ")) && !error.contains("hunter2"),
                "{name}={value}: {error}"
            );
        }
    }
    // The port in the address and the port setting differ.
    let mut both = Command::new(binaries().unwrap().join("patient-service"));
    both.env_clear().envs([database, ("BILLING_SERVICE_ADDRESS", "b:9002"), ("BILLING_SERVICE_GRPC_PORT", "9001")]);
    let output = output(&mut both).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(78) && error.contains("BILLING_SERVICE_GRPC_PORT: expected "), "{error}");
}

#[test]
fn unreachable_servers_are_retried_and_logged_once() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let database = ("DATABASE_URL", format!("postgres://nobody@{UNREACHABLE}/nothing"));
        let kafka = ("KAFKA_BOOTSTRAP_SERVERS", UNREACHABLE.to_owned());
        let grpc = ("GRPC_SERVER_PORT", ports::free().to_string());
        let state = ("STATE_FILE", scratch.path().join("state.sqlite").display().to_string());
        let peer = ("BILLING_SERVICE_GRPC_PORT", "9".to_owned());
        let mut patients = launch(&scratch, "patient-service", &[database.clone(), kafka.clone(), peer]);
        let mut billing = launch(&scratch, "billing-service", &[database, grpc]);
        let mut analytics = launch(&scratch, "analytics-service", &[kafka, state]);
        for service in [&patients, &billing] {
            until_readiness(service, "database", 503, "DOWN").await;
        }
        until_readiness(&analytics, "kafka", 200, "DEGRADED").await;
        until_metric(&analytics, "kafka_calls_total{operation=\"partitions\",outcome=\"unavailable\"}", |calls| {
            calls >= 4.0
        })
        .await;
        for (service, message) in [
            (&patients, "the database is unavailable"),
            (&billing, "the database is unavailable"),
            (&analytics, "events cannot be read; they wait on the topic"),
        ] {
            assert_eq!(logged(service, message), 1, "{}", service.log());
        }
        assert_eq!(readiness(&patients, "database").await.0, 503);
        for service in [&mut patients, &mut billing, &mut analytics] {
            let alive = service.client().get("/actuator/health/liveness").await.unwrap();
            assert_eq!(alive.status, 200);
            assert!(service.stop().await.success());
        }
    });
}

fn launch(scratch: &Scratch, name: &'static str, settings: &[(&str, String)]) -> Service {
    let common = [("LOG_FORMAT", "json".to_owned()), ("KAFKA_DEADLINE", "1s".to_owned())];
    let launch = Launch::new(name, scratch.path(), settings.iter().cloned().chain(common));
    launch.start_guarded(scratch).unwrap_or_else(|error| panic!("{error}"))
}
