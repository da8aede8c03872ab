//! Clients that write continuously and record acknowledged changes, while a test injects faults.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use runtime::Shutdown;
use serde_json::{Value as Json, json};
use smol::Task;
use surf::http::Method;
use uuid::Uuid;

use crate::{
    audit::Acknowledged,
    http::{Client, RequestError, Response},
    patient,
};

/// Timeout of a request: longer than any deadline of a service, so a timeout is a bug.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The pause of a client after a failed attempt.
const PAUSE: Duration = Duration::from_millis(20);
/// The maximum attempts of a request after the writers were told to stop.
const MAX_LAST_ATTEMPTS: usize = 200;

/// Running writers. Each registers patients with an `Idempotency-Key`, repeats requests without a response, changes and
/// charges some of its patients, and deletes some.
#[derive(Debug)]
pub struct Writers {
    stop: Shutdown,
    tasks: Vec<Task<WriterStats>>,
    acknowledged: Acknowledged,
}

/// The responses that writers got.
#[derive(Clone, Debug, Default)]
pub struct WriterStats {
    /// Responses by status.
    pub responses: BTreeMap<u16, usize>,
    /// Requests without a response.
    pub unanswered: usize,
    /// The longest time until a response.
    pub slowest: Duration,
    /// The longest time from a failure of a client's request to its next success.
    pub longest_outage: Duration,
    /// Responses that no fault explains, with their bodies: anything but success, 503, or 404 to a repeated deletion.
    pub unexpected: Vec<String>,
}

impl fmt::Display for WriterStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { responses, unanswered, slowest, longest_outage, unexpected } = self;
        write!(
            f,
            "responses {responses:?}, {unanswered} unanswered, slowest {slowest:?}, longest outage {longest_outage:?}"
        )?;
        unexpected.iter().try_for_each(|response| write!(f, "\n  {response}"))
    }
}

impl Writers {
    /// Starts `count` writers. They use the patient-services at these addresses in turn.
    pub fn start(addresses: &[String], count: usize) -> Self {
        let (stop, acknowledged) = (Shutdown::new(), Acknowledged::default());
        let addresses: Arc<[String]> = addresses.into();
        let task = |number| {
            let clients = addresses.iter().map(|address| Client::new(address).with_timeout(TIMEOUT)).collect();
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            let writer = Writer {
                clients,
                next: number,
                stop,
                acknowledged,
                stats: WriterStats::default(),
                failing_since: None,
            };
            runtime::spawn(writer.run())
        };
        let tasks = (0..count).map(task).collect();
        Self { stop, tasks, acknowledged }
    }

    /// The changes that were acknowledged so far.
    pub fn acknowledged(&self) -> &Acknowledged {
        &self.acknowledged
    }

    /// Waits until this many patients were acknowledged.
    ///
    /// # Errors
    /// After `limit`, with the number so far.
    pub async fn until(&self, patients: usize, limit: Duration) -> Result<(), usize> {
        let started = Instant::now();
        while self.acknowledged.count() < patients {
            if started.elapsed() > limit {
                return Err(self.acknowledged.count());
            }
            smol::Timer::after(PAUSE).await;
        }
        Ok(())
    }

    /// Waits until each writer has finished its current patient. Returns the sums over all writers, and the acknowledged
    /// changes.
    pub async fn stop(self) -> (WriterStats, Acknowledged) {
        self.stop.trigger();
        let mut all = WriterStats::default();
        for task in self.tasks {
            let stats = task.await;
            for (status, count) in stats.responses {
                *all.responses.entry(status).or_default() += count;
            }
            all.unanswered += stats.unanswered;
            all.slowest = all.slowest.max(stats.slowest);
            all.longest_outage = all.longest_outage.max(stats.longest_outage);
            all.unexpected.extend(stats.unexpected);
        }
        (all, self.acknowledged)
    }
}

struct Writer {
    clients: Vec<Client>,
    next: usize,
    stop: Shutdown,
    acknowledged: Acknowledged,
    stats: WriterStats,
    /// Since when requests have failed.
    failing_since: Option<Instant>,
}

impl Writer {
    async fn run(mut self) -> WriterStats {
        while !self.stop.is_triggered() {
            self.patient_lifecycle().await;
        }
        self.stats
    }

    /// Registers a patient, and perhaps changes, charges and deletes it.
    async fn patient_lifecycle(&mut self) {
        let key = Uuid::now_v7().to_string();
        let body = patient::body("Jane Doe", &format!("{key}@example.org"));
        let headers = [("idempotency-key", key.as_str())];
        let Some(created) = self.until(201, Method::Post, "/patients", &headers, Some(&body)).await else { return };
        let Some(id) = created.json()["id"].as_str().and_then(|id| id.parse::<Uuid>().ok()) else {
            return self.stats.unexpected.push(format!("a patient without an id: {}", created.text()));
        };
        self.acknowledged.stored(id, 1);
        let path = format!("/patients/{id}");
        if fastrand::u8(..3) == 0 {
            let Some(updated) = self.until(200, Method::Put, &path, &[], Some(&body)).await else { return };
            let version = updated.header("etag").and_then(|tag| tag.trim_matches('"').parse().ok());
            self.acknowledged.stored(id, version.unwrap_or_default());
        }
        if fastrand::u8(..5) == 0 {
            let charge = json!({"transactionId": key, "type": "CHARGE", "amount": 250, "currency": "EUR"});
            let transactions = format!("{path}/billing/transactions");
            let clients = self.clients.len();
            let client = &self.clients[self.next % clients];
            // Not repeated: while billing is down, every writer would soon be stuck with a charge.
            match client.send(Method::Post, &transactions, &[], Some(&charge)).await {
                Ok(response) => {
                    *self.stats.responses.entry(response.status).or_default() += 1;
                    match response.status {
                        201 => self.acknowledged.transaction_recorded(id, key.clone(), 250),
                        503 => {}
                        status => self.stats.unexpected.push(format!("a charge: {status} {}", response.text())),
                    }
                }
                Err(_) => self.stats.unanswered += 1,
            }
        }
        if fastrand::u8(..5) == 0 {
            self.acknowledged.delete_requested(id);
            if self.until(204, Method::Delete, &path, &[], None).await.is_some() {
                self.acknowledged.deleted(id);
            }
        }
    }

    /// Sends a request until it succeeds. None if it did not before the writers stopped, or if a response was unexpected.
    async fn until(
        &mut self,
        expected: u16,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Json>,
    ) -> Option<Response> {
        let mut last_attempts = 0;
        while last_attempts < MAX_LAST_ATTEMPTS {
            let client = &self.clients[self.next % self.clients.len()];
            self.next += 1;
            let started = Instant::now();
            let response: Result<Response, RequestError> = client.send(method, path, headers, body).await;
            self.stats.slowest = self.stats.slowest.max(started.elapsed());
            match response {
                Ok(response) => {
                    *self.stats.responses.entry(response.status).or_default() += 1;
                    // An earlier attempt, whose response was lost, may have deleted the patient.
                    let deleted_before = method == Method::Delete && response.status == 404;
                    if response.status == expected || deleted_before {
                        if let Some(since) = self.failing_since.take() {
                            self.stats.longest_outage = self.stats.longest_outage.max(since.elapsed());
                        }
                        return Some(response);
                    }
                    if response.status != 503 {
                        let text = response.text();
                        self.stats.unexpected.push(format!("{method} {path}: {} {text}", response.status));
                        return None;
                    }
                }
                Err(_) => self.stats.unanswered += 1,
            }
            self.failing_since.get_or_insert(started);
            last_attempts += usize::from(self.stop.is_triggered());
            smol::Timer::after(PAUSE).await;
        }
        None
    }
}
