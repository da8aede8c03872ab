//! The console of a running system, through the API that its page uses.

use std::time::{Duration, Instant};

use kafka::Consumer;
use serde_json::{Value as Json, json};
use surf::http::Method;
use testbed::{
    Signal,
    broker::Kind,
    http::{Client, Response},
    ports,
    service::{Launch, Service},
    system::{BackingServices, System},
    until,
};

use crate::{
    privacy::MARKS,
    support::{patient, unique},
};

testbed::on_each_broker!(
    a_registration_is_a_journey_whose_steps_and_proofs_are_true,
    patients_are_written_and_read_and_a_stale_edit_is_explained,
    a_killed_service_is_down_with_old_values_and_a_frozen_billing_opens_the_breaker
);

/// A system with a console.
struct Observed {
    system: System,
    console: Service,
    client: Client,
    origin: String,
}

impl Observed {
    async fn start(kind: Kind) -> Self {
        let port = ports::free();
        let endpoint = format!("http://127.0.0.1:{port}");
        let settings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
            ("OTEL_BLRP_SCHEDULE_DELAY", "100"),
            ("OTEL_METRICS_EXPORTER", "none"),
        ];
        let system = System::start(BackingServices::shared(kind).await, 1, &settings).await.unwrap();
        let addresses = [
            ("PATIENT_SERVICE_HTTP", system.patients[0].address()),
            ("BILLING_SERVICE_HTTP", system.billing.address()),
            ("ANALYTICS_SERVICE_HTTP", system.analytics.address()),
            ("LOG_LEVEL", "trace".to_owned()),
        ];
        let launch = Launch { port, ..Launch::new("console", system.directory(), addresses) };
        let mut console = launch.start_guarded(&system.scratch).unwrap();
        console.until_ready().await.unwrap();
        // The first event may have to wait for its topic.
        let first = system.patient_client().post("/patients", &patient("First Patient")).await.unwrap();
        assert_eq!(first.status, 201);
        system.until_summary(Duration::from_secs(30), |summary| summary["created"] == 1).await.unwrap();
        let client = console.client();
        Self { system, origin: client.base().to_owned(), client, console }
    }

    async fn get(&self, path: &str) -> Json {
        let answer = self.client.get(path).await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// As the page writes.
    async fn write(&self, method: Method, path: &str, more: &[(&str, &str)], body: &Json) -> Response {
        let own = [("x-console", "1"), ("origin", self.origin.as_str()), ("sec-fetch-site", "same-origin")];
        let headers: Vec<_> = own.into_iter().chain(more.iter().copied()).collect();
        self.client.send(method, path, &headers, Some(body)).await.unwrap()
    }

    async fn register(&self) -> Json {
        let key = format!("{:016x}", unique());
        let once = [("idempotency-key", key.as_str())];
        let answer = self.write(Method::Post, "/api/patients", &once, &patient("Jane Doe")).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    /// A journey, once it is as wanted.
    async fn until_journey(&self, trace: &str, what: &str, wanted: impl Fn(&Json) -> bool) -> Json {
        let mut last = Json::Null;
        let end = Instant::now() + Duration::from_secs(30);
        while !wanted(&last) {
            assert!(Instant::now() < end, "{what} has not happened: {last}");
            smol::Timer::after(Duration::from_millis(20)).await;
            last = self.client.get(&format!("/api/journeys/{trace}")).await.unwrap().json();
        }
        last
    }
}

fn list<'a>(value: &'a Json, name: &str) -> &'a [Json] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn with<'a>(value: &'a Json, name: &str, key: &str, wanted: &str) -> &'a Json {
    list(value, name).iter().find(|one| one[key] == wanted).unwrap_or(&Json::Null)
}

fn is_proved(journey: &Json) -> bool {
    list(journey, "proofs").len() == 3 && list(journey, "proofs").iter().all(|proof| proof["state"] == "ok")
}

fn a_registration_is_a_journey_whose_steps_and_proofs_are_true(kind: Kind) {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    runtime::block_on(2, async {
        let observed = Observed::start(kind).await;
        let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let key = format!("{:016x}", unique());
        let headers = [("idempotency-key", key.as_str()), ("traceparent", &traceparent)];
        let answer = observed.write(Method::Post, "/api/patients", &headers, &patient("Jane Doe")).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        let written = answer.json();
        assert_eq!((&written["trace"], &written["version"]), (&json!(TRACE), &json!(1)));
        // What is asked for at once is a skeleton at least.
        let begun = observed.get(&format!("/api/journeys/{TRACE}")).await;
        assert_eq!(list(&begun, "steps").len(), 6, "{begun}");

        let whole = |journey: &Json| {
            journey["delivered_by"] == "steps" && is_proved(journey) && list(journey, "logs").len() > 1
        };
        let journey = observed.until_journey(TRACE, "the journey is whole and proved", whole).await;
        let ids: Vec<_> = list(&journey, "steps").iter().map(|step| step["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["request", "commit", "billing", "outbox", "send", "apply"]);
        assert_eq!((&journey["title"], &journey["status"]), (&json!("POST /patients"), &json!(201)));
        assert_eq!(journey["patient"], written["patient"]["id"]);
        // The wait is what lies between the two spans.
        let ms = |value: &Json| value.as_f64().unwrap_or_else(|| panic!("{journey}"));
        let (commit, send) = (with(&journey, "spans", "step", "commit"), with(&journey, "spans", "step", "send"));
        let wait = ms(&send["start_ms"]) - (ms(&commit["start_ms"]) + ms(&commit["ms"]));
        let shown = ms(&with(&journey, "steps", "id", "outbox")["ms"]);
        assert!((shown - wait).abs() < 0.1, "{wait} {journey}");
        // Partition and offset are those of the record in the topic.
        let proof = with(&journey, "proofs", "id", "broker");
        let (partition, offset) = (proof["partition"].as_i64().unwrap(), proof["offset"].as_i64().unwrap());
        let servers = observed.system.backing_services();
        let bootstrap = config::Value::parse(&servers.kafka).unwrap();
        let kafka = kafka::Settings {
            bootstrap,
            deadline: Duration::from_secs(5),
            client_id: "test",
            security: kafka::Security::default(),
        };
        let mut consumer = Consumer::new(kafka, &servers.topic, i32::try_from(partition).unwrap());
        let fetched = consumer.fetch(offset, 1024 * 1024, Duration::from_secs(5)).await.unwrap();
        let record = fetched.records.iter().find(|record| record.offset == offset).unwrap().to_record();
        let id = written["patient"]["id"].as_str().unwrap();
        assert_eq!(record.record.key.as_deref(), Some(id.as_bytes()));
        // A line leads to the span within which it was written.
        let opened = with(&journey, "logs", "message", "account opened");
        let of_line = with(&journey, "spans", "span", opened["span"].as_str().unwrap());
        assert_eq!(of_line["service"], "billing-service", "{journey}");
        let listed = observed.get("/api/journeys").await;
        assert_eq!(with(&listed, "journeys", "trace", TRACE)["state"], "delivered", "{listed}");
    });
}

fn patients_are_written_and_read_and_a_stale_edit_is_explained(kind: Kind) {
    runtime::block_on(2, async {
        let mut observed = Observed::start(kind).await;
        let email = format!("zebediah.{:016x}@mark.example", unique());
        let marked = json!({
            "name": "Zebediah Markworthy",
            "email": email,
            "address": "77 Markington Lane",
            "dateOfBirth": "1953-04-17",
        });
        let key = format!("{:016x}", unique());
        let once = [("idempotency-key", key.as_str())];
        let first = observed.write(Method::Post, "/api/patients", &once, &marked).await.json();
        let second = observed.write(Method::Post, "/api/patients", &once, &marked).await;
        assert_eq!((second.status, &second.json()["patient"]["id"]), (201, &first["patient"]["id"]), "one patient");
        let repeated = second.json()["trace"].as_str().unwrap().to_owned();
        observed.until_journey(&repeated, "the repetition is done", |journey| journey["state"] == "done").await;
        let path = format!("/api/patients/{}", first["patient"]["id"].as_str().unwrap());

        let found = observed.get("/api/patients?q=Markworthy").await;
        assert_eq!(list(&found, "patients").len(), 1, "{found}");
        let page = observed.get("/api/patients?limit=1").await;
        let next = format!("/api/patients?limit=1&cursor={}", page["next"].as_str().unwrap());
        assert_ne!(observed.get(&next).await["patients"], page["patients"]);

        let mut edited = marked.clone();
        edited["address"] = "78 Markington Lane".into();
        let edit = async |tag: &str| observed.write(Method::Put, &path, &[("if-match", tag)], &edited).await;
        let answer = edit("\"1\"").await;
        assert_eq!((answer.status, &answer.json()["version"]), (200, &json!(2)), "{}", answer.text());
        let update = answer.json()["trace"].as_str().unwrap().to_owned();
        let is_delivered = |journey: &Json| journey["state"] == "delivered" && is_proved(journey);
        observed.until_journey(&update, "the edit is delivered", is_delivered).await;
        let stale = edit("\"1\"").await;
        assert_eq!(stale.status, 412);
        assert_eq!(stale.header("content-type"), Some("application/problem+json"));
        let current = stale.json()["current"].clone();
        assert_eq!((&current["version"], &current["patient"]["address"]), (&json!(2), &edited["address"]));
        assert_eq!(observed.write(Method::Put, &path, &[], &edited).await.status, 428);
        let invalid = observed.write(Method::Put, &path, &[("if-match", "\"2\"")], &json!({})).await;
        assert_eq!((invalid.status, &invalid.json()["errors"]["name"]), (400, &json!("Name is required")));

        for (id, kind, amount, currency) in
            [("t-1", "CHARGE", 7000, "EUR"), ("t-2", "PAYMENT", 2000, "EUR"), ("t-3", "CHARGE", 70, "JPY")]
        {
            let body = json!({"transactionId": id, "type": kind, "amount": amount, "currency": currency});
            let answer = observed.write(Method::Post, &format!("{path}/transactions"), &[], &body).await;
            assert_eq!(answer.status, 201, "{}", answer.text());
            assert!(answer.json()["trace"].is_string());
        }
        let shown = observed.get(&path).await;
        for (currency, exponent) in [("EUR", 2), ("JPY", 0)] {
            let of_currency = list(&shown, "transactions").iter().filter(|one| one["currency"] == currency);
            let sum: i64 = of_currency
                .map(|one| one["amount"].as_i64().unwrap() * if one["type"] == "PAYMENT" { -1 } else { 1 })
                .sum();
            let balance = with(&shown["billing"], "balances", "currency", currency);
            assert_eq!(balance["exponent"], exponent, "{shown}");
            let told = balance.as_object().unwrap().values().any(|value| value.as_i64() == Some(sum));
            assert!(told, "the ledger adds up to {sum} {currency}: {shown}");
        }
        assert_eq!((&shown["version"], &shown["etag"]), (&json!(2), &json!("\"2\"")));
        let versions: Vec<_> = list(&shown, "journeys").iter().map(|one| (&one["kind"], &one["version"])).collect();
        assert!(versions.contains(&(&json!("update"), &json!(2))), "{versions:?}");

        let deleted = observed.write(Method::Delete, &path, &[("if-match", "\"2\"")], &json!({})).await;
        assert_eq!(deleted.status, 200, "{}", deleted.text());
        let delete = deleted.json()["trace"].as_str().unwrap().to_owned();
        let journey = observed.until_journey(&delete, "the deletion is delivered", is_delivered).await;
        assert_eq!(with(&journey, "steps", "id", "close")["state"], "done", "{journey}");
        assert_eq!(observed.client.get(&path).await.unwrap().status, 404);

        // Nothing of the patient is kept: not in what is shown of the system, not in the log.
        let mut texts = vec![("the log".to_owned(), observed.console.log())];
        let mut pages = ["/api/journeys", "/api/logs?limit=1000", "/api/map", "/metrics", "/api/parts/patient-service"]
            .map(str::to_owned)
            .to_vec();
        pages.extend([&repeated, &update, &delete].map(|trace| format!("/api/journeys/{trace}")));
        for page in pages {
            let text = observed.client.get(&page).await.unwrap().text();
            texts.push((page, text));
        }
        for (place, text) in texts {
            for mark in MARKS {
                assert!(!text.contains(mark), "{mark} in {place}");
            }
        }
        assert!(observed.console.stop().await.success());
    });
}

fn a_killed_service_is_down_with_old_values_and_a_frozen_billing_opens_the_breaker(kind: Kind) {
    runtime::block_on(2, async {
        let mut observed = Observed::start(kind).await;
        let state = |map: &Json, id: &str| with(map, "parts", "id", id)["state"].clone();
        until("every part is up", async || {
            let map = observed.get("/api/map").await;
            list(&map, "parts").iter().all(|part| part["state"] == "up") && !list(&map, "partitions").is_empty()
        })
        .await;

        observed.system.billing.process().signal(Signal::STOP);
        let frozen = Instant::now();
        let calls: Vec<_> = (0..8)
            .map(|_| {
                let (client, body) = (observed.system.patient_client(), patient("Jane Doe"));
                runtime::spawn(async move { client.post("/patients", &body).await })
            })
            .collect();
        until("the breaker is open, patient-service is degraded and billing-service is down", async || {
            let map = observed.get("/api/map").await;
            with(&map, "edges", "id", "patient-service>billing-service")["breaker"] == "open"
                && state(&map, "patient-service") == "degraded"
                && state(&map, "billing-service") == "down"
        })
        .await;
        eprintln!("seen {:?} after billing-service was frozen", frozen.elapsed());
        for call in calls {
            assert_eq!(call.await.unwrap().status, 201);
        }
        observed.system.billing.process().signal(Signal::CONT);
        let is_up = async || state(&observed.get("/api/map").await, "billing-service") == "up";
        until("billing-service is up again", is_up).await;

        observed.system.analytics.process().kill().await;
        until("analytics-service is down, its values are old", async || {
            let map = observed.get("/api/map").await;
            let analytics = with(&map, "parts", "id", "analytics-service");
            analytics["state"] == "down" && analytics["stale"] == true && !list(&map, "partitions").is_empty()
        })
        .await;
        let waiting = observed.register().await["trace"].as_str().unwrap().to_owned();
        let waits = |journey: &Json| {
            journey["state"] == "waiting"
                && with(journey, "steps", "id", "apply")["waits_for"]["part"] == "analytics-service"
        };
        observed.until_journey(&waiting, "the event waits for analytics", waits).await;
        observed.system.restart(|system| &mut system.analytics).await.unwrap();
        let is_delivered = |journey: &Json| journey["state"] == "delivered";
        observed.until_journey(&waiting, "the event is delivered", is_delivered).await;
    });
}
