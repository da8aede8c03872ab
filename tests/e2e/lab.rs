//! The lab of a system that `up` has started: the agent on the host injects the faults, and ends them by itself.

use std::{
    fs,
    time::{Duration, Instant},
};

use chrono::Utc;
use kafka::Record;
use serde_json::{Value as Json, json};
use surf::http::Method;
use testbed::{Process, Signal, http::Client, until};
use uuid::Uuid;

use crate::{
    commands::created,
    stack::{Stack, printed},
    support::register,
    up::broker,
};

/// Time for a fault and for what comes after it.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// Whether a process stands still.
fn stands_still(process: &Process) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
    // The state follows the name, which stands in parentheses and may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

async fn send(console: &Client, method: Method, path: &str, body: Json) -> (u16, Json) {
    let origin = console.base().to_owned();
    let headers = [("x-console", "1"), ("origin", origin.as_str()), ("sec-fetch-site", "same-origin")];
    let answer = console.send(method, path, &headers, Some(&body)).await.unwrap();
    (answer.status, answer.json())
}

async fn begin(console: &Client, part: &str, verb: &str, seconds: u64) -> String {
    let (status, body) =
        send(console, Method::Post, "/api/lab/runs", json!({"part": part, "verb": verb, "seconds": seconds})).await;
    assert_eq!(status, 202, "{body}");
    format!("/api/lab/runs/{}", body["run"].as_str().unwrap())
}

/// Waits until a run is in one of these states; gives it.
async fn until_run(console: &Client, path: &str, states: &[&str]) -> Json {
    let end = Instant::now() + RUN_LIMIT;
    loop {
        let run = console.get(path).await.unwrap().json();
        if states.iter().any(|state| run["state"] == *state) {
            return run;
        }
        assert!(Instant::now() < end, "it is not {states:?}: {run}");
        smol::Timer::after(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_fault_is_measured_and_ends_though_the_console_is_killed() {
    runtime::block_on(2, async {
        let stack = Stack::new(broker(), "stack");
        stack.up_with(&[], &[]);
        let console = stack.client("CONSOLE_PORT");
        until("the agent asks for work", async || console.get("/api/lab").await.unwrap().json()["agent"] == true).await;
        let lab = console.get("/api/lab").await.unwrap().json();
        assert!(lab["parts"].as_array().unwrap().iter().any(|part| part["id"] == "kafka"), "{lab}");

        // Samples say that they are.
        assert!(stack.print(&["seed", "3"]).contains("/patients"));
        let samples = console.get("/api/patients?q=sample.example").await.unwrap().json();
        let samples = samples["patients"].as_array().unwrap();
        assert_eq!(samples.len(), 3, "{samples:?}");
        assert!(samples.iter().all(|one| one["address"].as_str().unwrap().starts_with("Sample: ")), "{samples:?}");

        // With a right expectation and all that was measured.
        let run = begin(&console, "billing-service", "pause", 3).await;
        let ended = until_run(&console, &run, &["ended", "failed"]).await;
        assert_eq!(ended["state"], "ended", "{ended}");
        let verdicts = ended["verdicts"].as_array().unwrap();
        assert!(verdicts.iter().all(|verdict| verdict["state"] == "ok"), "{ended}");
        let summary = stack.client("ANALYTICS_PORT");
        let active = async || summary.get("/analytics/summary").await.unwrap().json()["activePatients"] == 3;
        until("the canaries are gone", active).await;

        // A dead letter is sent again once, and is dead again.
        let junk = Record {
            key: Some(b"junk".to_vec()),
            value: Some(vec![0xff; 33]),
            headers: Vec::new(),
            timestamp: Utc::now(),
        };
        let offset = stack.send("patient", 1, junk).await;
        let listed = async || console.get("/api/dead-letters").await.unwrap().json()["analytics"].clone();
        let is_forwarded =
            |letters: &Json| letters.as_array().is_some_and(|all| all.iter().any(|one| one["forwarded"] == true));
        until("the letter is on its topic", async || is_forwarded(&listed().await)).await;
        let letter = json!({"partition": 1, "offset": offset});
        let (status, told) = send(&console, Method::Post, "/api/dead-letters/resend", letter.clone()).await;
        assert_eq!((status, &told["state"], &told["detail"]), (200, &json!("dead"), &json!("The cause persists.")));
        let (status, told) = send(&console, Method::Post, "/api/dead-letters/resend", letter).await;
        assert_eq!((status, &told["state"]), (200, &json!("dead")));
        assert!(told["detail"].as_str().unwrap().starts_with("It was sent again before"), "{told}");
        assert_eq!(listed().await.as_array().map(Vec::len), Some(2), "the first, and that of the second time");

        // Not beside an `up`, which would not start it again.
        let before = stack.process("analytics-service").unwrap().pid();
        let lock = fs::File::open(stack.home().join("lock")).unwrap();
        lock.lock().unwrap();
        let run = begin(&console, "analytics-service", "kill", 60).await;
        let failed = until_run(&console, &run, &["running", "failed"]).await;
        assert!(failed["state"] == "failed" && failed.to_string().contains("is at work on this system"), "{failed}");
        lock.unlock().unwrap();
        // A service that was killed comes back, when no other command is at work.
        let run = begin(&console, "analytics-service", "kill", 60).await;
        until_run(&console, &run, &["running"]).await;
        lock.lock().unwrap();
        let (status, _) = send(&console, Method::Delete, &run, json!({})).await;
        assert_eq!(status, 202, "somebody has seen enough");
        for _ in 0..3 {
            let ps = stack.print(&["ps"]);
            let line = ps.lines().find(|line| line.contains("analytics-service")).unwrap();
            assert!(line.contains(" stopped "), "{line}");
        }
        lock.unlock().unwrap();
        let ended = until_run(&console, &run, &["ended", "failed"]).await;
        stack.guard();
        assert_eq!(ended["state"], "ended", "{ended}");
        assert_ne!(stack.process("analytics-service").unwrap().pid(), before);

        // The timer is the agent's own.
        let run = begin(&console, "kafka", "pause", 5).await;
        until_run(&console, &run, &["running"]).await;
        let kafka = stack.process("broker/broker").unwrap();
        assert!(stands_still(&kafka));
        stack.process("console").unwrap().signal(Signal::KILL);
        until("the broker runs again", async || !stands_still(&kafka)).await;
        // And it ends with the agent.
        stack.up_with(&[], &[]);
        until("the agent asks for work", async || console.get("/api/lab").await.unwrap().json()["agent"] == true).await;
        let run = begin(&console, "kafka", "pause", 60).await;
        until_run(&console, &run, &["running"]).await;
        let kafka = stack.process("broker/broker").unwrap();
        assert!(stands_still(&kafka));
        stack.print(&["down"]);
        assert!(stack.process("broker/broker").is_none());
    });
}

#[test]
fn what_was_rejected_of_patient_service_is_listed_and_resent() {
    runtime::block_on(2, async {
        let stack = Stack::new(broker(), "stack");
        stack.up_with(&[], &[]);
        let (console, analytics) = (stack.client("CONSOLE_PORT"), stack.client("ANALYTICS_PORT"));
        let counted = async |count: u64| {
            let summary = analytics.get("/analytics/summary").await.unwrap().json();
            summary["activePatients"] == count
        };
        let patient = register(&stack.client("PATIENT_PORT"), "Jane Doe").await;
        until("the first patient is counted", async || counted(1).await).await;
        until("the agent asks for work", async || console.get("/api/lab").await.unwrap().json()["agent"] == true).await;
        let listed = async || console.get("/api/dead-letters").await.unwrap().json()["outbox"].clone();
        until("nothing was rejected", async || listed().await == json!([])).await;

        stack.reject_event(7, &created(Uuid::now_v7())).await;
        let patient = patient["id"].as_str().unwrap();
        let insert = "INSERT INTO billing_task_dead_letters (patient_id, action, name, email, attempts, error)";
        stack
            .execute(format!("{insert} VALUES ('{patient}', 'OPEN', 'Jane', 'marked@example.org', 3, 'not valid')"))
            .await;
        let task = format!("billing-{patient}");
        let both = async || listed().await.as_array().is_some_and(|all| all.len() == 2);
        until("both are listed", both).await;
        let letters = listed().await;
        let of = |id: &str| letters.as_array().unwrap().iter().find(|letter| letter["id"] == id).unwrap();
        assert_eq!(
            (&of("outbox-7")["kind"], &of("outbox-7")["error"]),
            (&json!("PATIENT_CREATED"), &json!("TooLarge"))
        );
        assert!(of("outbox-7")["bytes"].as_u64() > Some(10) && of(&task)["kind"] == "OPEN", "{letters}");
        assert!(!letters.to_string().contains("marked@example.org"), "{letters}");

        let resend =
            async |id: &str| send(&console, Method::Post, "/api/dead-letters/resend", json!({ "id": id })).await;
        for wrong in ["outbox-x", "7", "billing-7", "--resend"] {
            assert_eq!(resend(wrong).await.0, 400, "{wrong}");
        }
        let (status, unknown) = resend("outbox-9").await;
        assert_eq!((status, &unknown["state"]), (200, &json!("dead")));
        assert!(unknown["detail"].as_str().unwrap().contains("there is no dead letter outbox-9"), "{unknown}");
        for id in ["outbox-7", task.as_str()] {
            assert_eq!(resend(id).await, (200, json!({ "state": "accepted", "detail": null })), "{id}");
        }
        until("they are no dead letters any more", async || listed().await == json!([])).await;
        until("the event is counted", async || counted(2).await).await;
    });
}

#[test]
fn the_tour_leads_through_ten_steps_of_a_running_system() {
    runtime::block_on(2, async {
        let stack = Stack::new(broker(), "stack");
        let early = stack.run(&["tour"]);
        assert!(
            !early.status.success() && printed(&early).contains("Nothing is running: just up"),
            "{}",
            printed(&early)
        );
        stack.up_with(&[("BILLING_DEADLINE", "3s")], &[]);
        let before = stack.process("patient-service").unwrap().pid();
        let tour = stack.print(&["tour"]);
        stack.guard();
        assert!(tour.contains("10 of 10  Delete the patient"), "{tour}");
        assert_eq!(stack.process("patient-service").unwrap().pid(), before, "its up changes no setting");
        // Every place in the console is there.
        let console = stack.client("CONSOLE_PORT");
        let base = console.base().to_owned();
        let places: Vec<_> = tour.lines().filter_map(|line| line.trim().strip_prefix("Console  ")).collect();
        assert_eq!(places.len(), 10, "{tour}");
        for place in places {
            let path = place.strip_prefix(&base).unwrap();
            assert_eq!(console.get(path).await.unwrap().status, 200, "{place}");
            let known = path.starts_with("/journeys/").then(|| format!("/api{path}"));
            if let Some(known) = known {
                assert_eq!(console.get(&known).await.unwrap().status, 200, "{known}");
            }
        }
    });
}
