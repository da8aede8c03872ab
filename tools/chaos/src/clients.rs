//! Clients that write and read, and remember each acknowledged change.
//!
//! Each client writes its own patients, one request at a time. A request without a response, with 503, or with 502 of a balancer
//! in front of the replicas may or may not be committed: it is repeated on another replica until there is a response. An Idempotency-Key, an entity tag or the id of a
//! transaction makes the repetition safe, also if the first attempt arrives late.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fastrand::Rng;
use runtime::Shutdown;
use serde_json::{Value as Json, json};
use surf::http::Method;
use testbed::{
    audit::Acknowledged,
    http::{Client, Response},
    patient,
};
use uuid::Uuid;

/// Timeout of one attempt.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Milliseconds between attempts, and between requests of a client.
const PAUSE: std::ops::Range<u64> = 50..250;
const THINK: std::ops::Range<u64> = 20..160;
/// Unexpected responses that are reported in full.
const MAX_SHOWN: usize = 10;

/// Sums over all clients. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedStats(Arc<Mutex<Stats>>);

/// Sums over all clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) created: usize,
    pub(crate) updated: usize,
    pub(crate) deleted: usize,
    pub(crate) read: usize,
    pub(crate) transactions_recorded: usize,
    /// Attempts without a response, and with 503.
    pub(crate) unanswered: usize,
    pub(crate) rejected_with_503: usize,
    /// Changes that an attempt without a response had committed.
    pub(crate) committed_without_response: usize,
    /// The longest wait of a client for a response about patients, and about the ledger.
    pub(crate) patients_wait: Wait,
    pub(crate) ledger_wait: Wait,
    /// Responses that no fault explains.
    pub(crate) unexpected_responses: Vec<String>,
    pub(crate) more_unexpected_responses: usize,
}

/// The time until a client got a response, with repetitions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wait {
    pub(crate) time: Duration,
    /// The purpose of the request.
    pub(crate) purpose: &'static str,
    /// When it ended, since the client started.
    pub(crate) until: Duration,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, purpose, until } = self;
        write!(f, "{:.1} s (to {purpose}, until {:.1} s)", time.as_secs_f64(), until.as_secs_f64())
    }
}

impl SharedStats {
    pub(crate) fn stats(&self) -> Stats {
        self.with(|stats| stats.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Stats) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn unexpected_response(&self, description: String) {
        self.with(|stats| {
            if stats.unexpected_responses.len() < MAX_SHOWN {
                stats.unexpected_responses.push(description)
            } else {
                stats.more_unexpected_responses += 1
            }
        });
    }
}

/// One client.
#[derive(Debug)]
pub(crate) struct Writer {
    name: String,
    replicas: Vec<Client>,
    /// The replica that it uses now.
    replica: usize,
    rng: Rng,
    began: Instant,
    acknowledged: Acknowledged,
    shared_stats: SharedStats,
    patients: Vec<OwnPatient>,
    /// How many patients it has tried to create.
    created: usize,
    /// When it stops repeating requests.
    give_up_at: Arc<Mutex<Option<Instant>>>,
}

/// A patient of one client in its last acknowledged state.
#[derive(Clone, Debug)]
struct OwnPatient {
    id: Uuid,
    version: i64,
    name: String,
    email: String,
    transactions: usize,
}

/// The client has given up: the system does not respond.
struct GaveUp;

struct Request<'a> {
    /// In messages, after "to".
    purpose: &'static str,
    method: Method,
    path: String,
    headers: Vec<(&'a str, String)>,
    body: Option<Json>,
}

impl Writer {
    pub(crate) fn new(
        number: usize,
        seed: u64,
        replicas: Vec<Client>,
        acknowledged: Acknowledged,
        shared_stats: SharedStats,
        give_up_at: Arc<Mutex<Option<Instant>>>,
    ) -> Self {
        let replicas: Vec<_> = replicas.into_iter().map(|client| client.with_timeout(ATTEMPT_TIMEOUT)).collect();
        let name = format!("{seed:x}-{number}");
        let rng = Rng::with_seed(seed.wrapping_add(number as u64 + 1));
        let replica = number % replicas.len();
        let (patients, began) = (Vec::new(), Instant::now());
        Self { name, replicas, replica, rng, began, acknowledged, shared_stats, patients, created: 0, give_up_at }
    }

    /// Writes and reads until the shutdown, and then until the last request has a response. Returns the client for
    /// [`check`](Self::check); none if the system does not respond any more.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> Option<Self> {
        while !shutdown.is_triggered() {
            if self.step().await.is_err() {
                self.shared_stats.unexpected_response("a client gave up: the system does not respond".to_owned());
                return None;
            }
            let think = self.rng.u64(THINK);
            shutdown.run_until_stopped(smol::Timer::after(Duration::from_millis(think))).await;
        }
        Some(self)
    }

    async fn step(&mut self) -> Result<(), GaveUp> {
        if self.patients.is_empty() {
            return self.create().await;
        }
        let index = self.rng.usize(..self.patients.len());
        match self.rng.u8(..100) {
            0..28 => self.create().await,
            28..52 => self.update(index).await,
            52..60 => self.delete(index).await,
            60..80 => self.read(index).await,
            _ => self.record_transaction(index).await,
        }
    }

    async fn create(&mut self) -> Result<(), GaveUp> {
        self.created += 1;
        let email = format!("{}-{}@example.org", self.name, self.created);
        let name = format!("Patient {} of {}", self.created, self.name);
        let request = Request {
            purpose: "create a patient",
            method: Method::Post,
            path: "/patients".to_owned(),
            headers: vec![("idempotency-key", format!("{}-{}", self.name, self.created))],
            body: Some(patient::body(&name, &email)),
        };
        let (response, _) = self.response(&request).await?;
        let id = response.json()["id"].as_str().and_then(|id| id.parse::<Uuid>().ok());
        let (201, Some(id), Some(1)) = (response.status, id, version(&response)) else {
            self.report(&request, &response);
            return Ok(());
        };
        self.acknowledged.stored(id, 1);
        self.shared_stats.with(|stats| stats.created += 1);
        self.patients.push(OwnPatient { id, version: 1, name, email, transactions: 0 });
        Ok(())
    }

    async fn update(&mut self, index: usize) -> Result<(), GaveUp> {
        let mut own = self.patients[index].clone();
        let next = own.version + 1;
        let name = format!("{} changed to {next}", own.name.split(" changed").next().unwrap_or_default());
        let request = Request {
            purpose: "change a patient",
            method: Method::Put,
            path: own.path(),
            headers: vec![("if-match", own.tag())],
            body: Some(patient::body(&name, &own.email)),
        };
        let (response, repeated) = self.response(&request).await?;
        match (response.status, version(&response)) {
            (200, Some(version)) if version == next => {}
            // An attempt without a response has committed the change if the patient is as expected now.
            (412, _) if repeated => {
                let (found, _) = self.response(&Self::read_request(&own)).await?;
                if (version(&found), found.json()["name"].as_str()) != (Some(next), Some(name.as_str())) {
                    self.report(&request, &found);
                    return Ok(());
                }
                self.shared_stats.with(|stats| stats.committed_without_response += 1);
            }
            _ => {
                self.report(&request, &response);
                return Ok(());
            }
        }
        self.acknowledged.stored(own.id, next);
        self.shared_stats.with(|stats| stats.updated += 1);
        (own.version, own.name) = (next, name);
        self.patients[index] = own;
        Ok(())
    }

    async fn delete(&mut self, index: usize) -> Result<(), GaveUp> {
        let own = self.patients[index].clone();
        self.acknowledged.delete_requested(own.id);
        let request = Request {
            purpose: "delete a patient",
            method: Method::Delete,
            path: own.path(),
            headers: vec![("if-match", own.tag())],
            body: None,
        };
        let (response, repeated) = self.response(&request).await?;
        match response.status {
            204 => {}
            404 if repeated => self.shared_stats.with(|stats| stats.committed_without_response += 1),
            _ => {
                self.report(&request, &response);
                return Ok(());
            }
        }
        self.acknowledged.deleted(own.id);
        self.shared_stats.with(|stats| stats.deleted += 1);
        self.patients.swap_remove(index);
        Ok(())
    }

    async fn read(&mut self, index: usize) -> Result<(), GaveUp> {
        let own = self.patients[index].clone();
        let request = Self::read_request(&own);
        let (response, _) = self.response(&request).await?;
        if own.is(&response) {
            self.shared_stats.with(|stats| stats.read += 1);
        } else {
            self.report(&request, &response);
        }
        Ok(())
    }

    async fn record_transaction(&mut self, index: usize) -> Result<(), GaveUp> {
        let amount = self.rng.i64(1..100_000);
        let kind = *self.rng.choice(&["CHARGE", "CHARGE", "PAYMENT", "REFUND"]).unwrap_or(&"CHARGE");
        let own = &mut self.patients[index];
        own.transactions += 1;
        let (patient, transaction) = (own.id, format!("t-{}", own.transactions));
        let request = Request {
            purpose: "enter a transaction",
            method: Method::Post,
            path: format!("{}/billing/transactions", own.path()),
            headers: Vec::new(),
            body: Some(json!({"transactionId": transaction, "type": kind, "amount": amount, "currency": "EUR"})),
        };
        let (response, _) = self.response(&request).await?;
        if (response.status, response.json()["amount"].as_i64()) != (201, Some(amount)) {
            self.report(&request, &response);
            return Ok(());
        }
        self.acknowledged.transaction_recorded(patient, transaction, if kind == "PAYMENT" { -amount } else { amount });
        self.shared_stats.with(|stats| stats.transactions_recorded += 1);
        Ok(())
    }

    /// Reads every patient of this client, and reports those that are not in their last acknowledged state.
    pub(crate) async fn check(mut self) {
        for own in std::mem::take(&mut self.patients) {
            let request = Self::read_request(&own);
            match self.response(&request).await {
                Ok((response, _)) if own.is(&response) => {}
                Ok((response, _)) => self.report(&request, &response),
                Err(GaveUp) => {
                    return self.shared_stats.unexpected_response("a client gave up the final read".to_owned());
                }
            }
        }
    }

    fn read_request(own: &OwnPatient) -> Request<'static> {
        Request { purpose: "read a patient", method: Method::Get, path: own.path(), headers: Vec::new(), body: None }
    }

    /// Sends a request until a replica responds with something other than 503. True if it was sent more than once.
    async fn response(&mut self, request: &Request<'_>) -> Result<(Response, bool), GaveUp> {
        let Request { purpose, method, path, headers, body } = request;
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let started = Instant::now();
        let mut repeated = false;
        loop {
            let sent = self.replicas[self.replica].send(*method, path, &headers, body.as_ref()).await.ok();
            let sent = sent.filter(|response| !is_from_balancer(response));
            match &sent {
                Some(response) if response.status != 503 => {}
                Some(_) => self.shared_stats.with(|stats| stats.rejected_with_503 += 1),
                None => self.shared_stats.with(|stats| stats.unanswered += 1),
            }
            if let Some(response) = sent.filter(|response| response.status != 503) {
                let wait = Wait { time: started.elapsed(), purpose, until: self.began.elapsed() };
                self.shared_stats.with(|stats| {
                    let longest =
                        if path.ends_with("transactions") { &mut stats.ledger_wait } else { &mut stats.patients_wait };
                    if wait.time > longest.time {
                        *longest = wait;
                    }
                });
                return Ok((response, repeated));
            }
            let give_up_at = *self.give_up_at.lock().unwrap_or_else(PoisonError::into_inner);
            if give_up_at.is_some_and(|time| Instant::now() > time) {
                return Err(GaveUp);
            }
            repeated = true;
            self.replica = (self.replica + 1) % self.replicas.len();
            smol::Timer::after(Duration::from_millis(self.rng.u64(PAUSE))).await;
        }
    }

    fn report(&self, request: &Request<'_>, response: &Response) {
        let Request { purpose, method, path, body, .. } = request;
        let at = self.began.elapsed().as_secs_f64();
        let body = body.as_ref().map(Json::to_string).unwrap_or_default();
        self.shared_stats.unexpected_response(format!(
            "at {at:.1} s, to {purpose}, {method} {path} {body} got {} {:?} {}",
            response.status,
            response.header("etag"),
            response.text()
        ));
    }
}

/// Whether a balancer responds instead of a replica that failed or stood still in the middle of the request.
fn is_from_balancer(response: &Response) -> bool {
    [502, 504].contains(&response.status) && response.header("content-type") != Some("application/problem+json")
}

impl OwnPatient {
    fn path(&self) -> String {
        format!("/patients/{}", self.id)
    }

    fn tag(&self) -> String {
        format!("\"{}\"", self.version)
    }

    /// Whether a response has this patient in this version.
    fn is(&self, response: &Response) -> bool {
        let body = response.json();
        response.status == 200
            && version(response) == Some(self.version)
            && body["name"] == self.name.as_str()
            && body["email"] == self.email.as_str()
    }
}

fn version(response: &Response) -> Option<i64> {
    response.header("etag")?.trim_matches('"').parse().ok()
}
