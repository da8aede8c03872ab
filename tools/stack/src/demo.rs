//! Sends one patient through the system, and prints each step with its time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use chrono::{DateTime, Utc};
use codec::{event::ReceivedEvent, headers};
use kafka::partitioner::{key_hash, of_hash};
use kafka::{Consumer, RecordAndOffset};
use serde_json::{Value as Json, json};
use testbed::{http::Response, patient};

use crate::{
    analytics::Analytics,
    backend,
    http::{expect, unexpected},
    secure,
    settings::Settings,
    topic,
};

/// Time for a step.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often the summary of analytics is read.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

pub(crate) async fn run(settings: &Settings) -> Result<()> {
    let patients = secure::client(settings, &settings.patient_address())?;
    let analytics = backend::analytics(settings)?;
    let kafka = topic::kafka(settings, "demo")?;
    let before = analytics.summary().await?;
    // From the current end of each partition: the events of the demo come after it.
    let mut topic = Topic::at_the_end(&kafka).await?;

    let email = format!("demo.{}@example.org", Utc::now().timestamp_millis());
    let details = |name: &str| patient::body(name, &email);
    println!("POST /patients");
    let sent = Instant::now();
    let response = patients.post("/patients", &details("Demo Patient")).await?;
    let answered = sent.elapsed();
    let registered = expect(&response, 201)?;
    let id = registered["id"].as_str().unwrap_or_default().to_owned();
    let timing = server_timing(&response);
    let published = topic.next_of(&id).await?;
    let applied = until_applied(&analytics, &published).await?;
    let applied_after = sent.elapsed();

    let event_time = published.time_of_event();
    let hop = |name: &str, detail: String, ms: f64| println!("  {name:<34}{ms:>9.1} ms  {detail}");
    println!("  patient {id}\n");
    hop("HTTP request, until its response", "201 Created".to_owned(), answered.as_secs_f64() * 1e3);
    hop("  committed in PostgreSQL", "patient, event and billing task: one commit".to_owned(), timing["store"]);
    hop(
        "  billing account over gRPC",
        format!("{} {}", text(&registered["billing"], "accountId"), text(&registered["billing"], "status")),
        timing["billing"],
    );
    let waited = (published.record.record.timestamp - event_time).num_microseconds().unwrap_or_default() as f64 / 1e3;
    hop("waited in the outbox", "from the commit to the relay's batch".to_owned(), waited.max(0.0));
    hop(
        "written to Kafka",
        format!("partition {}, offset {}", published.partition, published.record.offset),
        (published.received_after).as_secs_f64() * 1e3,
    );
    hop("applied by analytics", applied, applied_after.as_secs_f64() * 1e3);
    println!("  The last two are counted from the request, and include the polling of the demo.");
    if let Some(trace) = response.header("traceparent").and_then(|header| header.split('-').nth(1)) {
        println!(
            "  One trace has all of it (analytics logs each event at LOG_LEVEL=debug): just logs --all | grep {trace}"
        );
    }

    println!("\nAnd then");
    let path = format!("/patients/{id}");
    let step = |name: &str, result: String| println!("  {name:<34}{result}");
    let response = patients.put(&path, &details("Demo Patient the Second")).await?;
    step(
        "PUT the patient",
        format!("{}, ETag {}", expect(&response, 200)?["name"], response.header("etag").unwrap_or_default()),
    );
    let transaction = |id: &str, kind: &str, amount: i64| json!({"transactionId": id, "type": kind, "amount": amount, "currency": "EUR"});
    let transactions = format!("{path}/billing/transactions");
    expect(&patients.post(&transactions, &transaction("visit-1", "CHARGE", 12_000)).await?, 201)?;
    step("charge", "120.00 EUR".to_owned());
    expect(&patients.post(&transactions, &transaction("transfer-1", "PAYMENT", 5_000)).await?, 201)?;
    let account = expect(&patients.get(&format!("{path}/billing")).await?, 200)?;
    step("payment", format!("50.00 EUR, balance {}", account["balances"]));
    let response = patients.delete(&path).await?;
    if response.status != 204 {
        return Err(unexpected(&response));
    }
    step("DELETE the patient", "204, its account is being closed".to_owned());
    let mut last = published;
    for _ in 0..2 {
        last = topic.next_of(&id).await?;
    }
    until_applied(&analytics, &last).await?;

    let after = analytics.summary().await?;
    println!("\nAnalytics{:>18}{:>10}{:>8}", "before", "after", "");
    for name in ["activePatients", "created", "updated", "deleted"] {
        let (before, after) = (before[name].as_i64().unwrap_or_default(), after[name].as_i64().unwrap_or_default());
        println!("  {name:<16}{before:>9}{after:>10}{:>+8}", after - before);
    }
    Ok(())
}

/// Reads the topic from the end that it had when the demo started.
struct Topic {
    consumers: BTreeMap<i32, (Consumer, i64)>,
    began: Instant,
}

struct Published {
    partition: i32,
    record: RecordAndOffset,
    received_after: Duration,
}

impl Published {
    fn time_of_event(&self) -> DateTime<Utc> {
        let time = headers::text(&self.record.record.headers, "ce_time");
        time.and_then(|time| time.parse().ok()).unwrap_or(self.record.record.timestamp)
    }
}

impl Topic {
    async fn at_the_end(kafka: &kafka::Settings) -> Result<Self> {
        topic::until_exists(kafka).await;
        let consumers = topic::events(kafka).await?;
        let consumers =
            consumers.into_iter().map(|(partition, (consumer, offsets))| (partition, (consumer, offsets.end)));
        let consumers = consumers.collect();
        Ok(Self { consumers, began: Instant::now() })
    }

    /// The next event of a patient.
    async fn next_of(&mut self, id: &str) -> Result<Published> {
        let partition = of_hash(key_hash(id.as_bytes()), self.consumers.len() as i32);
        let began = self.began;
        let (consumer, next) = self.consumers.get_mut(&partition).ok_or_else(|| anyhow!("no such partition"))?;
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end {
            let fetched = consumer.fetch(*next, 1 << 20, Duration::from_millis(200)).await?;
            for record in fetched.records.iter() {
                *next = record.offset + 1;
                let event = record.value.and_then(|value| ReceivedEvent::decode(value).ok());
                if event.is_some_and(|event| event.patient_id.to_string() == id) {
                    let record = record.to_record();
                    return Ok(Published { partition, record, received_after: began.elapsed() });
                }
            }
            *next = (*next).max(fetched.next);
        }
        Err(anyhow!("The event has not been published; see just logs."))
    }
}

/// Waits until analytics has applied a record.
async fn until_applied(analytics: &Analytics, published: &Published) -> Result<String> {
    let offset = BTreeMap::from([(published.partition, published.record.offset)]);
    let summary = analytics.until_applied(&offset, TIMEOUT, POLL_INTERVAL, |_| ()).await?;
    Ok(format!("{} active patients", summary["activePatients"]))
}

fn text(json: &Json, field: &str) -> String {
    json[field].as_str().unwrap_or("-").to_owned()
}

/// The milliseconds in the header `Server-Timing`, by name.
fn server_timing(response: &Response) -> BTreeMap<&str, f64> {
    let mut timing = BTreeMap::from([("store", 0.0), ("billing", 0.0)]);
    for component in response.header("server-timing").unwrap_or_default().split(',') {
        if let Some((name, duration)) = component.trim().split_once(";dur=")
            && let Ok(duration) = duration.parse()
        {
            timing.insert(name, duration);
        }
    }
    timing
}
