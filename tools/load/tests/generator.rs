//! The load generator against a small registry in memory.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use config::{Environment, Reader};
use runtime::Shutdown;
use serde_json::{Value as Json, json};
use tide::{Request, Response, StatusCode};
use web::{Problem, Router, Server, Settings};

/// How long a registry stalls, once.
const STALL: Duration = Duration::from_millis(500);

#[derive(Clone, Default)]
struct Registry {
    patients: Arc<Mutex<BTreeMap<String, Json>>>,
    /// Requests by method, and by whether they were rejected.
    requests: Arc<Mutex<BTreeMap<String, u64>>>,
    stall: Arc<AtomicBool>,
}

impl Registry {
    fn count(&self, what: &str) {
        *self.requests.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    fn counted(&self, what: &str) -> u64 {
        self.requests.lock().unwrap().get(what).copied().unwrap_or_default()
    }
}

async fn list(request: Request<Registry>) -> Result<Response, Problem> {
    request.state().count("list");
    if request.state().stall.swap(false, Ordering::Relaxed) {
        smol::Timer::after(STALL).await;
    }
    Ok(web::json(StatusCode::Ok, &request.state().patients.lock().unwrap().values().take(20).collect::<Vec<_>>()))
}

async fn create(mut request: Request<Registry>) -> Result<Response, Problem> {
    request.state().count("create");
    let mut patient: Json = request.body_json().await.unwrap();
    let id = uuid::Uuid::now_v7().to_string();
    patient["id"] = json!(id);
    request.state().patients.lock().unwrap().insert(id, patient.clone());
    Ok(web::json(StatusCode::Created, &patient))
}

async fn update(request: Request<Registry>) -> Result<Response, Problem> {
    request.state().count("update");
    let patients = request.state().patients.lock().unwrap();
    let patient = patients.get(request.param("id").unwrap());
    patient.map(|patient| web::json(StatusCode::Ok, patient)).ok_or_else(|| Problem::not_found("no"))
}

async fn read(request: Request<Registry>) -> Result<Response, Problem> {
    request.state().count("read");
    let patients = request.state().patients.lock().unwrap();
    let patient = patients.get(request.param("id").unwrap());
    patient.map(|patient| web::json(StatusCode::Ok, patient)).ok_or_else(|| Problem::not_found("no"))
}

async fn delete(request: Request<Registry>) -> Result<Response, Problem> {
    request.state().count("delete");
    let deleted = request.state().patients.lock().unwrap().remove(request.param("id").unwrap());
    deleted.map(|_| web::no_content()).ok_or_else(|| Problem::not_found("no"))
}

async fn reject(_: Request<Registry>) -> Result<Response, Problem> {
    Err(Problem::unavailable("never", Duration::from_secs(1)))
}

struct TriggerAtEnd(Shutdown);

impl Drop for TriggerAtEnd {
    fn drop(&mut self) {
        self.0.trigger();
    }
}

/// Serves the registry while `work` runs, which gets the base URL.
fn with_registry<T>(registry: &Registry, work: impl FnOnce(&str) -> T) -> T {
    let mut reader = Reader::new(Environment::empty().with("SERVER_PORT", "0"));
    let server = Server::bind(&Settings::read(&mut reader, "0")).unwrap();
    let url = format!("http://{}", server.address());
    let shutdown = Shutdown::new();
    let app = Router::new(registry.clone())
        .get("/patients", list)
        .post("/patients", create)
        .get("/patients/:id", read)
        .put("/patients/:id", update)
        .delete("/patients/:id", delete)
        .get("/rejected", reject)
        .build();
    thread::scope(|scope| {
        // Also when `work` panics: the scope waits for the server.
        let _stop = TriggerAtEnd(shutdown.clone());
        scope.spawn(move || runtime::block_on(1, server.serve(app, shutdown)));
        work(&url)
    })
}

/// Runs `load` and returns its report.
fn load(arguments: &[&str]) -> Json {
    let directory = testbed::Scratch::new().unwrap();
    let report = directory.path().join("report.json");
    let output = testbed::command(env!("CARGO_BIN_EXE_load"))
        .unwrap()
        .args(arguments)
        .args(["--quiet", "--json", report.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("p99.9"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap()
}

#[test]
fn a_closed_loop_sends_the_whole_mix_and_counts_each_request() {
    let registry = Registry::default();
    let report = with_registry(&registry, |url| load(&["closed", url, "-d", "600ms", "-w", "0s", "-c", "4"]));
    assert_eq!(report["errors"], json!({}), "no client meets what another one deleted");
    for action in ["create", "read", "list", "update", "delete"] {
        let counted = registry.counted(action);
        // The list is also asked for known patients, once.
        let expected = report["byAction"][action]["count"].as_u64().unwrap() + u64::from(action == "list");
        assert_eq!(counted, expected, "{action}");
    }
    assert!(report["machine"]["cores"].as_u64() > Some(0) && report["processes"][0]["name"] == "load");
}

#[test]
fn updates_and_deletions_are_of_patients_that_were_made_before() {
    for (scenario, counters) in [("update", "echo made $(($(date +%s%N) / 1000000))"), ("delete", "echo made 7")] {
        let registry = Registry::default();
        let report = with_registry(&registry, |url| {
            let arguments = ["-c", "4", "-d", "200ms", "-w", "0s", "--own", "10000", "--counters", counters];
            load(&[&["closed", url, "--scenario", scenario][..], &arguments].concat())
        });
        assert_eq!(registry.counted("create"), 10_000, "before it began");
        let count = registry.counted(scenario);
        assert_eq!(report["byAction"], json!({ scenario: report["all"] }));
        assert!(count > 0 && report["all"]["count"].as_u64() == Some(count), "{report}");
        let grown = report["counters"]["made"].as_f64().unwrap();
        assert_eq!(grown > 0.0, scenario == "update", "{report}");
    }
}

/// Coordinated omission: a stall of the service must show in the latency of every request that should have begun
/// meanwhile, and none may be missing.
#[test]
fn an_open_loop_counts_the_wait_of_late_requests() {
    let registry = Registry::default();
    let arguments = ["--scenario", "list", "-d", "2s", "-w", "0s", "-c", "1", "--rate", "200"];
    let report = with_registry(&registry, |url| {
        registry.stall.store(true, Ordering::Relaxed);
        load(&[&["open", url][..], &arguments].concat())
    });
    let all = &report["all"];
    assert_eq!((all["count"].as_u64(), &report["errors"]), (Some(400), &json!({})));
    // A quarter of the requests should have begun during the stall, and waited half of it on average.
    let p90 = all["p90Ms"].as_f64().unwrap();
    assert!(p90 > STALL.as_secs_f64() * 1e3 / 3.0, "p90 {p90} ms");
}

#[test]
fn failures_are_reported_by_kind() {
    let report = with_registry(&Registry::default(), |url| {
        load(&["closed", url, "--path", "/rejected", "-d", "200ms", "-w", "0s", "-c", "2"])
    });
    assert!(report["errors"]["get: status 503"].as_u64() > Some(0), "{report}");
    assert_eq!(report["all"]["count"], 0);
    let closed = format!("http://127.0.0.1:{}", testbed::ports::free());
    let report = load(&["closed", &closed, "--path", "/", "-d", "200ms", "-w", "0s", "-c", "2"]);
    assert!(report["errors"]["get: cannot connect"].as_u64() > Some(0), "{report}");
}
