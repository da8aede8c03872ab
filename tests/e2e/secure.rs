//! `up --secure`: the suite of a running system, with identities and TLS everywhere. CI runs it besides the same tests on systems
//! without.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use config::{Environment, Reader};
use serde_json::json;
use surf::http::Method;
use testbed::{broker::Kind, http::Client, until};

use crate::{
    journey, privacy,
    running_system::RunningSystem,
    stack::{Stack, printed},
    support::{patient, unique},
    traces,
};

/// Time for a connection and for a call on a busy machine, where handshakes take long.
const PATIENT: [(&str, &str); 2] = [("DATABASE_ACQUIRE_DEADLINE", "10s"), ("BILLING_DEADLINE", "5s")];
/// How long a fetch waits for records.
const WAIT: Duration = Duration::from_secs(1);

// Skipped, with the reason, where Apache Kafka cannot be installed: Nisshi has neither TLS nor SASL.
mod on_kafka {
    #[test]
    fn the_suite_of_a_running_system_passes_on_a_secure_one() {
        super::the_suite_of_a_running_system_passes_on_a_secure_one();
    }
}

fn the_suite_of_a_running_system_passes_on_a_secure_one() {
    runtime::block_on(2, async {
        let stack = Stack::secure("söme where");
        let up = stack.up_with(&PATIENT, &["--secure"]);
        assert!(up.contains("--cacert") && up.contains("$(just token)") && !up.contains("Identities are off"), "{up}");
        let system = || {
            let home = stack.home().to_owned();
            let log = move |component: &str| fs::read_to_string(home.join(format!("{component}.log"))).unwrap();
            RunningSystem::of_target(&stack.print(&["target"]), Box::new(log))
        };
        journey::of_one_patient(&system()).await;
        journey::of_many_patients(&system()).await;
        let lines = [("patient-service", "patient registered"), ("billing-service", "account opened")];
        traces::of_a_registration(&system(), &lines).await;
        privacy::of_a_marked_patient(&system()).await;

        assert!(stack.print(&["demo"]).contains("applied by analytics"));
        assert!(stack.print(&["dead-letters"]).contains("no dead letters"));
        assert!(stack.print(&["seed", "3"]).contains("Browse them"));
        let ps = stack.print(&["ps"]);
        assert_eq!(ps.lines().filter(|line| line.contains(" ready ")).count(), 5, "{ps}");
        let tour = stack.print(&["tour"]);
        stack.guard();
        assert!(tour.contains("--cacert") && tour.contains("10 of 10  Delete the patient"), "{tour}");
        refuses_strangers(&stack).await;
        the_console_lets_people_log_in(&stack).await;
        the_gateway_has_the_paths_of_the_original(&stack).await;
        nobody_else_reads_secrets(stack.home());

        stack.print(&["kill", "patient-service"]);
        let before = fs::read(stack.home().join("tls/ca.pem")).unwrap();
        stack.up_with(&PATIENT, &["--secure"]);
        journey::of_one_patient(&system()).await;
        assert_eq!(fs::read(stack.home().join("tls/ca.pem")).unwrap(), before, "the authority is kept");

        let other = stack.try_up(&[], &[]);
        assert!(!other.status.success() && printed(&other).contains("secure, with identities"), "{}", printed(&other));
        stack.print(&["down"]);
        assert!(!stack.run(&["target"]).status.success(), "nothing runs");
        stack.print(&["reset", "--yes"]);
        assert!(!stack.home().exists());
    });
}

/// Without a token, with one that grants too little, without the authority, without a certificate, without TLS.
async fn refuses_strangers(stack: &Stack) {
    let patients = stack.client("PATIENT_PORT");
    assert!(patients.get("/patients").await.is_err(), "it speaks TLS alone");
    let target = stack.print(&["target"]);
    let authority = target.lines().find_map(|line| line.strip_prefix("AUTHORITY=")).unwrap();
    let access = testbed::http::Access::new(Path::new(authority)).unwrap();
    let patients: Client = patients.with_access(&access);
    assert_eq!(patients.get("/patients").await.unwrap().status, 401);
    let token = |user| stack.print(&["token", user]).trim().to_owned();
    let post = async |token: String, body| {
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str())];
        patients.send(Method::Post, "/patients", &headers, Some(&body)).await.unwrap()
    };
    let refused = post(token("reader"), json!({})).await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(refused.text().contains("patients:write"));
    assert_eq!(post(token("developer"), patient("Jane Doe")).await.status, 201);
    // Metrics are on the operations port alone.
    assert_eq!(patients.get("/metrics").await.unwrap().status, 401);
    // PostgreSQL takes no client over TCP without a certificate, and a service no database but its own.
    let url = stack.variable_of("patient-service", "DATABASE_URL").unwrap();
    let (plain, _) = url.split_once('?').unwrap();
    let count = |url: &str| testbed_rows(url.to_owned());
    assert!(count(plain).await.is_err());
    assert!(count(&url).await.is_ok());
    assert!(count(&url.replace("/patients?", "/billing?")).await.is_err());
    for statement in
        ["CREATE TABLE others (x text)", "DROP TABLE patients", "TRUNCATE patients", "SELECT * FROM _sqlx_migrations"]
    {
        let error = testbed::sql::execute(&url, statement).await.unwrap_err().to_string();
        assert!(error.contains("permission denied") || error.contains("must be owner"), "{statement}: {error}");
    }
    // A service may do on the broker what it needs, and nothing else.
    let kafka = kafka_as(stack, "patient-service");
    assert!(kafka::partitions(&kafka, "patient").await.is_ok());
    for (what, outcome) in [
        ("it reads events", kafka::Consumer::new(kafka.clone(), "patient", 0).fetch(0, 1024, WAIT).await.map(drop)),
        ("it creates a topic", kafka::create_topic(&kafka, "others", 1).await.map(drop)),
    ] {
        assert!(matches!(outcome, Err(kafka::Error::RequestRejected(_))), "{what}: {outcome:?}");
    }
    until("a client without SASL is refused", async || kafka::partitions(&stack.kafka, "patient").await.is_err()).await;
}

/// A client of the broker with the settings of a service.
fn kafka_as(stack: &Stack, service: &str) -> kafka::Settings {
    let names = ["BOOTSTRAP_SERVERS", "SECURITY_PROTOCOL", "SSL_TRUSTSTORE_LOCATION", "SSL_KEYSTORE_LOCATION"];
    let names = names.into_iter().chain(["SASL_MECHANISM", "SASL_USERNAME", "SASL_PASSWORD"]);
    let environment = names.map(|name| format!("KAFKA_{name}")).fold(Environment::empty(), |all, name| {
        let value = stack.variable_of(service, &name).unwrap_or_else(|| panic!("{name} is not set"));
        all.with(name, value)
    });
    let mut reader = Reader::new(environment);
    let settings = kafka::Settings::read(&mut reader, "tests");
    reader.finish(settings).unwrap().0
}

/// One address for clients, over TLS, with the paths of the original gateway. `up` says if there is none.
async fn the_gateway_has_the_paths_of_the_original(stack: &Stack) {
    if Command::new("nginx").arg("-v").output().is_err() {
        println!("SKIPPED: the gateway: nginx is not installed");
        return;
    }
    let access = testbed::http::Access::new(&stack.home().join("tls/ca.pem")).unwrap();
    let gateway = stack.client("GATEWAY_PORT").with_access(&access);
    let user = fs::read(stack.home().join("users/developer.json")).unwrap();
    let login = gateway.post("/auth/login", &serde_json::from_slice(&user).unwrap()).await.unwrap();
    assert_eq!(login.status, 200, "{}", login.text());
    let authorization = format!("Bearer {}", login.json()["token"].as_str().unwrap());
    for (path, status) in
        [("/auth/validate", 200), ("/api/patients?limit=1", 200), ("/api/analytics/summary", 200), ("/patients", 404)]
    {
        let known = gateway.send(Method::Get, path, &[("authorization", &authorization)], None).await.unwrap();
        assert_eq!(known.status, status, "{path}: {}", known.text());
    }
    for path in ["/auth/validate", "/api/patients", "/api/analytics/summary"] {
        assert_eq!(gateway.get(path).await.unwrap().status, 401, "{path}");
    }
    let send = async |method, path: &str, more: &[(&str, &str)], body: Option<&serde_json::Value>| {
        let headers = [&[("authorization", authorization.as_str())], more].concat();
        gateway.send(method, path, &headers, body).await.unwrap()
    };
    let page = send(Method::Get, "/api/patients?limit=1", &[], None).await;
    let next = page.next().unwrap();
    assert!(next.starts_with("/api/patients?"), "{next}");
    assert_eq!(send(Method::Get, &next, &[], None).await.status, 200, "{next}");
    let created = send(Method::Post, "/api/patients", &[], Some(&patient("Jane Doe"))).await;
    let location = created.header("location").unwrap();
    assert!(location.starts_with("/api/patients/"), "{location}");
    // Preconditions are for patient-service.
    let read = send(Method::Get, location, &[], None).await;
    let tag = read.header("etag").unwrap();
    assert_eq!(send(Method::Get, location, &[("if-none-match", tag)], None).await.status, 304);
    let changed = patient("Jane Roe");
    for expected in [200, 412] {
        let answer = send(Method::Put, location, &[("if-match", tag)], Some(&changed)).await;
        assert_eq!(answer.status, expected, "{}", answer.text());
    }
}

/// The console shows nothing without a login, and what a person writes through it is written as that person.
async fn the_console_lets_people_log_in(stack: &Stack) {
    let console = stack.client("CONSOLE_PORT");
    for path in ["/api/patients", "/api/journeys", "/api/map", "/api/stream"] {
        assert_eq!(console.get(path).await.unwrap().status, 401, "{path}");
    }
    let send = async |path: &str, cookie: &str, body: serde_json::Value| {
        let key = format!("{:016x}", unique());
        let headers = [
            ("origin", console.base()),
            ("sec-fetch-site", "same-origin"),
            ("x-console", "1"),
            ("idempotency-key", key.as_str()),
            ("cookie", cookie),
        ];
        console.send(Method::Post, path, &headers, Some(&body)).await.unwrap()
    };
    let user = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(stack.home().join(format!("users/{name}.json"))).unwrap()).unwrap()
    };
    let wrong = json!({"email": user("developer")["email"], "password": "wrong"});
    assert_eq!(send("/api/session", "", wrong).await.status, 401);
    let log_in = async |name: &str| {
        let answer = send("/api/session", "", user(name)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let cookie = answer.header("set-cookie").unwrap().to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        cookie.split(';').next().unwrap().to_owned()
    };
    let reader = log_in("reader").await;
    assert_eq!(send("/api/patients", &reader, patient("Jane Doe")).await.status, 403, "patient-service says so");
    assert_eq!(send("/api/lab/load", &reader, json!({"rate": 1, "seconds": 1})).await.status, 403);
    let developer = log_in("developer").await;
    let written = send("/api/patients", &developer, patient("Jane Doe")).await;
    assert_eq!(written.status, 201, "{}", written.text());
    let path = format!("/api/journeys/{}", written.json()["trace"].as_str().unwrap());
    until("the journey is delivered", async || {
        let headers = [("cookie", developer.as_str())];
        console.send(Method::Get, &path, &headers, None).await.unwrap().json()["state"] == "delivered"
    })
    .await;
}

async fn testbed_rows(url: String) -> Result<Vec<i64>, testbed::Error> {
    testbed::sql::rows(&url, "SELECT 1::bigint", |row| sqlx::Row::try_get(row, 0)).await
}

/// Certificates, users and settings with passwords have mode 0600, and no process has a password among its arguments.
fn nobody_else_reads_secrets(home: &Path) {
    let find = Command::new("find").args([home.as_os_str(), "-type".as_ref(), "f".as_ref()]).output().unwrap();
    let passwords: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(home.join("users/kafka.json")).unwrap()).unwrap();
    let password = passwords["patient-service"].as_str().unwrap();
    let mut private = 0;
    for file in String::from_utf8(find.stdout).unwrap().lines() {
        let is_private = fs::metadata(file).unwrap().permissions().mode() & 0o077 == 0;
        private += usize::from(is_private);
        let bytes = fs::read(file).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(is_private || !text.contains(password) && !text.contains("PRIVATE KEY"), "{file}");
    }
    assert!(private > 20, "{private}");
    assert!(Kind::Kafka.is_installed());
}
