//! Clients that write all the time and note what they were told: the load under which faults strike.

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
    http::{Answer, Client, NoAnswer},
};

/// Time for one answer: longer than any deadline of a service, so that a client that waits longer has found a fault.
const LIMIT: Duration = Duration::from_secs(15);
/// The pause of a client after an answer that was none.
const PAUSE: Duration = Duration::from_millis(20);
/// An attempt is repeated so often at most once the writers are to stop.
const LAST_ATTEMPTS: usize = 200;

/// Writers at work. Each registers patients with an `Idempotency-Key`, repeats what was not answered, changes some of
/// its patients, charges them and deletes some.
#[derive(Debug)]
pub struct Writers {
    stop: Shutdown,
    tasks: Vec<Task<Written>>,
    acknowledged: Acknowledged,
}

/// What writers have seen.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Answers by status.
    pub answers: BTreeMap<u16, usize>,
    /// Requests that had no answer.
    pub unanswered: usize,
    /// The slowest answer.
    pub slowest: Duration,
    /// The longest time from a failure of a client's request to its next success.
    pub longest_outage: Duration,
    /// Answers that no fault excuses, with their bodies: anything but success, 503, or 404 to a repeated deletion.
    pub strange: Vec<String>,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answers, unanswered, slowest, longest_outage, strange } = self;
        write!(
            f,
            "answers {answers:?}, {unanswered} unanswered, slowest {slowest:?}, longest outage {longest_outage:?}"
        )?;
        strange.iter().try_for_each(|answer| write!(f, "\n  {answer}"))
    }
}

impl Writers {
    /// Starts so many writers on the patient-services at these addresses, which they use in turn.
    pub fn start(addresses: &[String], count: usize) -> Self {
        let (stop, acknowledged) = (Shutdown::new(), Acknowledged::default());
        let addresses: Arc<[String]> = addresses.into();
        let task = |number| {
            let clients = addresses.iter().map(|address| Client::new(address).with_limit(LIMIT)).collect();
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            let writer = Writer { clients, next: number, stop, acknowledged, seen: Written::default(), failing: None };
            runtime::spawn(writer.run())
        };
        let tasks = (0..count).map(task).collect();
        Self { stop, tasks, acknowledged }
    }

    /// What they were told so far.
    pub fn acknowledged(&self) -> &Acknowledged {
        &self.acknowledged
    }

    /// Waits until so many patients were acknowledged.
    ///
    /// # Errors
    /// How many there were, if it takes longer than `limit`.
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

    /// Lets each finish what it is at; gives what all of them have seen, and what they were told.
    pub async fn stop(self) -> (Written, Acknowledged) {
        self.stop.trigger();
        let mut all = Written::default();
        for task in self.tasks {
            let seen = task.await;
            for (status, count) in seen.answers {
                *all.answers.entry(status).or_default() += count;
            }
            all.unanswered += seen.unanswered;
            all.slowest = all.slowest.max(seen.slowest);
            all.longest_outage = all.longest_outage.max(seen.longest_outage);
            all.strange.extend(seen.strange);
        }
        (all, self.acknowledged)
    }
}

struct Writer {
    clients: Vec<Client>,
    next: usize,
    stop: Shutdown,
    acknowledged: Acknowledged,
    seen: Written,
    /// Since when nothing has succeeded.
    failing: Option<Instant>,
}

impl Writer {
    async fn run(mut self) -> Written {
        while !self.stop.is_triggered() {
            self.life().await;
        }
        self.seen
    }

    /// A patient's life, or a part of it.
    async fn life(&mut self) {
        let key = Uuid::now_v7().to_string();
        let body = json!({
            "name": "Jane Doe",
            "email": format!("{key}@example.org"),
            "address": "1 Main Street",
            "dateOfBirth": "1990-12-31",
        });
        let headers = [("idempotency-key", key.as_str())];
        let Some(created) = self.until(201, Method::Post, "/patients", &headers, Some(&body)).await else { return };
        let Some(id) = created.json()["id"].as_str().and_then(|id| id.parse::<Uuid>().ok()) else {
            return self.seen.strange.push(format!("a patient without an id: {}", created.text()));
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
            // Not repeated: without billing every writer would soon be at a charge.
            match client.send(Method::Post, &transactions, &[], Some(&charge)).await {
                Ok(answer) => {
                    *self.seen.answers.entry(answer.status).or_default() += 1;
                    match answer.status {
                        201 => self.acknowledged.entered(id, key.clone(), 250),
                        503 => {}
                        status => self.seen.strange.push(format!("a charge: {status} {}", answer.text())),
                    }
                }
                Err(_) => self.seen.unanswered += 1,
            }
        }
        if fastrand::u8(..5) == 0 {
            self.acknowledged.deleting(id);
            if self.until(204, Method::Delete, &path, &[], None).await.is_some() {
                self.acknowledged.deleted(id);
            }
        }
    }

    /// Sends a request until it succeeds. None if it never did, or was refused in a strange way.
    async fn until(
        &mut self,
        wanted: u16,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Json>,
    ) -> Option<Answer> {
        let mut last_attempts = 0;
        while last_attempts < LAST_ATTEMPTS {
            let client = &self.clients[self.next % self.clients.len()];
            self.next += 1;
            let started = Instant::now();
            let answer: Result<Answer, NoAnswer> = client.send(method, path, headers, body).await;
            self.seen.slowest = self.seen.slowest.max(started.elapsed());
            match answer {
                Ok(answer) => {
                    *self.seen.answers.entry(answer.status).or_default() += 1;
                    // An earlier attempt may have deleted it although its answer was lost.
                    let gone = method == Method::Delete && answer.status == 404;
                    if answer.status == wanted || gone {
                        if let Some(since) = self.failing.take() {
                            self.seen.longest_outage = self.seen.longest_outage.max(since.elapsed());
                        }
                        return Some(answer);
                    }
                    if answer.status != 503 {
                        let text = answer.text();
                        self.seen.strange.push(format!("{method} {path}: {} {text}", answer.status));
                        return None;
                    }
                }
                Err(_) => self.seen.unanswered += 1,
            }
            self.failing.get_or_insert(started);
            last_attempts += usize::from(self.stop.is_triggered());
            smol::Timer::after(PAUSE).await;
        }
        None
    }
}
