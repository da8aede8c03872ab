//! Clients that write, and remember what they were told.
//!
//! A client is the only one who writes its patients, and does one thing at a time. A request without an answer, or with
//! 503, may have been done or not: it is repeated, at another replica, until there is an answer. An Idempotency-Key, an
//! entity tag or a transaction's id makes the repetition safe, and no late arrival of the first can do harm.

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
    http::{Answer, Client},
};
use uuid::Uuid;

/// Time for one attempt.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(3);
/// Milliseconds between attempts, and between what a client does.
const PAUSE: std::ops::Range<u64> = 50..250;
const THINK: std::ops::Range<u64> = 20..160;
/// Surprises that are told in full.
const TOLD: usize = 10;

/// What all clients have seen. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<Sums>>);

/// Sums over all clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) created: usize,
    pub(crate) updated: usize,
    pub(crate) deleted: usize,
    pub(crate) read: usize,
    pub(crate) entered: usize,
    /// Attempts without an answer, and with 503.
    pub(crate) unanswered: usize,
    pub(crate) refused: usize,
    /// Changes that had been done although nobody was told.
    pub(crate) done_unheard: usize,
    /// The longest that a client had to wait for patients, and for the ledger.
    pub(crate) patients_wait: Wait,
    pub(crate) ledger_wait: Wait,
    /// Answers that no fault explains.
    pub(crate) surprises: Vec<String>,
    pub(crate) more_surprises: usize,
}

/// How long somebody waited for what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wait {
    pub(crate) time: Duration,
    pub(crate) what: &'static str,
    /// When it ended, after the begin of the load.
    pub(crate) until: Duration,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, what, until } = self;
        write!(f, "{:.1} s (to {what}, until {:.1} s)", time.as_secs_f64(), until.as_secs_f64())
    }
}

impl Seen {
    pub(crate) fn sums(&self) -> Sums {
        self.with(|sums| sums.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Sums) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn surprise(&self, what: String) {
        self.with(
            |sums| {
                if sums.surprises.len() < TOLD { sums.surprises.push(what) } else { sums.more_surprises += 1 }
            },
        );
    }
}

/// One client.
#[derive(Debug)]
pub(crate) struct Writer {
    name: String,
    replicas: Vec<Client>,
    at: usize,
    rng: Rng,
    began: Instant,
    acknowledged: Acknowledged,
    seen: Seen,
    patients: Vec<Mine>,
    made: usize,
    /// Until when it repeats requests; later it gives up.
    give_up: Arc<Mutex<Option<Instant>>>,
}

/// A patient of one client, as the client knows it. It lists those that are not deleted.
#[derive(Clone, Debug)]
struct Mine {
    id: Uuid,
    version: i64,
    name: String,
    email: String,
    transactions: usize,
}

/// The client has given up: the system does not answer.
struct GaveUp;

/// What a client does.
struct Request<'a> {
    what: &'static str,
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
        seen: Seen,
        give_up: Arc<Mutex<Option<Instant>>>,
    ) -> Self {
        let replicas: Vec<_> = replicas.into_iter().map(|client| client.with_limit(ATTEMPT)).collect();
        let name = format!("{seed:x}-{number}");
        let rng = Rng::with_seed(seed.wrapping_add(number as u64 + 1));
        let at = number % replicas.len();
        let (patients, began) = (Vec::new(), Instant::now());
        Self { name, replicas, at, rng, began, acknowledged, seen, patients, made: 0, give_up }
    }

    /// Writes and reads until the shutdown, and then until there is no request without an answer. Gives itself for
    /// [`check`](Self::check); none if the system does not answer any more.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> Option<Self> {
        while !shutdown.is_triggered() {
            if self.step().await.is_err() {
                self.seen.surprise("a client gave up: the system does not answer".to_owned());
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
            _ => self.enter(index).await,
        }
    }

    async fn create(&mut self) -> Result<(), GaveUp> {
        self.made += 1;
        let email = format!("{}-{}@example.org", self.name, self.made);
        let name = format!("Patient {} of {}", self.made, self.name);
        let request = Request {
            what: "create a patient",
            method: Method::Post,
            path: "/patients".to_owned(),
            headers: vec![("idempotency-key", format!("{}-{}", self.name, self.made))],
            body: Some(details(&name, &email)),
        };
        let (answer, _) = self.answer(&request).await?;
        let id = answer.json()["id"].as_str().and_then(|id| id.parse::<Uuid>().ok());
        let (201, Some(id), Some(1)) = (answer.status, id, version(&answer)) else {
            self.surprised(&request, &answer);
            return Ok(());
        };
        self.acknowledged.stored(id, 1);
        self.seen.with(|sums| sums.created += 1);
        self.patients.push(Mine { id, version: 1, name, email, transactions: 0 });
        Ok(())
    }

    async fn update(&mut self, index: usize) -> Result<(), GaveUp> {
        let mut mine = self.patients[index].clone();
        let next = mine.version + 1;
        let name = format!("{} changed to {next}", mine.name.split(" changed").next().unwrap_or_default());
        let request = Request {
            what: "change a patient",
            method: Method::Put,
            path: mine.path(),
            headers: vec![("if-match", mine.tag())],
            body: Some(details(&name, &mine.email)),
        };
        let (answer, repeated) = self.answer(&request).await?;
        match (answer.status, version(&answer)) {
            (200, Some(version)) if version == next => {}
            // An attempt that nobody heard of has changed it, if it is as we want it now.
            (412, _) if repeated => {
                let (found, _) = self.answer(&Self::reading(&mine)).await?;
                if (version(&found), found.json()["name"].as_str()) != (Some(next), Some(name.as_str())) {
                    self.surprised(&request, &found);
                    return Ok(());
                }
                self.seen.with(|sums| sums.done_unheard += 1);
            }
            _ => {
                self.surprised(&request, &answer);
                return Ok(());
            }
        }
        self.acknowledged.stored(mine.id, next);
        self.seen.with(|sums| sums.updated += 1);
        (mine.version, mine.name) = (next, name);
        self.patients[index] = mine;
        Ok(())
    }

    async fn delete(&mut self, index: usize) -> Result<(), GaveUp> {
        let mine = self.patients[index].clone();
        self.acknowledged.deleting(mine.id);
        let request = Request {
            what: "delete a patient",
            method: Method::Delete,
            path: mine.path(),
            headers: vec![("if-match", mine.tag())],
            body: None,
        };
        let (answer, repeated) = self.answer(&request).await?;
        match answer.status {
            204 => {}
            404 if repeated => self.seen.with(|sums| sums.done_unheard += 1),
            _ => {
                self.surprised(&request, &answer);
                return Ok(());
            }
        }
        self.acknowledged.deleted(mine.id);
        self.seen.with(|sums| sums.deleted += 1);
        self.patients.swap_remove(index);
        Ok(())
    }

    async fn read(&mut self, index: usize) -> Result<(), GaveUp> {
        let mine = self.patients[index].clone();
        let request = Self::reading(&mine);
        let (answer, _) = self.answer(&request).await?;
        if mine.is(&answer) {
            self.seen.with(|sums| sums.read += 1);
        } else {
            self.surprised(&request, &answer);
        }
        Ok(())
    }

    async fn enter(&mut self, index: usize) -> Result<(), GaveUp> {
        let amount = self.rng.i64(1..100_000);
        let kind = *self.rng.choice(&["CHARGE", "CHARGE", "PAYMENT", "REFUND"]).unwrap_or(&"CHARGE");
        let mine = &mut self.patients[index];
        mine.transactions += 1;
        let (patient, transaction) = (mine.id, format!("t-{}", mine.transactions));
        let request = Request {
            what: "enter a transaction",
            method: Method::Post,
            path: format!("{}/billing/transactions", mine.path()),
            headers: Vec::new(),
            body: Some(json!({"transactionId": transaction, "type": kind, "amount": amount, "currency": "EUR"})),
        };
        let (answer, _) = self.answer(&request).await?;
        if (answer.status, answer.json()["amount"].as_i64()) != (201, Some(amount)) {
            self.surprised(&request, &answer);
            return Ok(());
        }
        self.acknowledged.entered(patient, transaction, if kind == "PAYMENT" { -amount } else { amount });
        self.seen.with(|sums| sums.entered += 1);
        Ok(())
    }

    /// Reads every patient of this client once more.
    pub(crate) async fn check(mut self) {
        for mine in std::mem::take(&mut self.patients) {
            let request = Self::reading(&mine);
            match self.answer(&request).await {
                Ok((answer, _)) if mine.is(&answer) => {}
                Ok((answer, _)) => self.surprised(&request, &answer),
                Err(GaveUp) => return self.seen.surprise("a client gave up reading in the end".to_owned()),
            }
        }
    }

    fn reading(mine: &Mine) -> Request<'static> {
        Request { what: "read a patient", method: Method::Get, path: mine.path(), headers: Vec::new(), body: None }
    }

    /// Sends a request until there is an answer other than 503; true if it was sent more than once.
    async fn answer(&mut self, request: &Request<'_>) -> Result<(Answer, bool), GaveUp> {
        let Request { what, method, path, headers, body } = request;
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let started = Instant::now();
        let mut repeated = false;
        loop {
            let sent = self.replicas[self.at].send(*method, path, &headers, body.as_ref()).await;
            match &sent {
                Ok(answer) if answer.status != 503 => {}
                Ok(_) => self.seen.with(|sums| sums.refused += 1),
                Err(_) => self.seen.with(|sums| sums.unanswered += 1),
            }
            if let Some(answer) = sent.ok().filter(|answer| answer.status != 503) {
                let wait = Wait { time: started.elapsed(), what, until: self.began.elapsed() };
                self.seen.with(|sums| {
                    let longest =
                        if path.ends_with("transactions") { &mut sums.ledger_wait } else { &mut sums.patients_wait };
                    if wait.time > longest.time {
                        *longest = wait;
                    }
                });
                return Ok((answer, repeated));
            }
            let give_up = *self.give_up.lock().unwrap_or_else(PoisonError::into_inner);
            if give_up.is_some_and(|give_up| Instant::now() > give_up) {
                return Err(GaveUp);
            }
            repeated = true;
            self.at = (self.at + 1) % self.replicas.len();
            smol::Timer::after(Duration::from_millis(self.rng.u64(PAUSE))).await;
        }
    }

    fn surprised(&self, request: &Request<'_>, answer: &Answer) {
        let Request { what, method, path, body, .. } = request;
        let at = self.began.elapsed().as_secs_f64();
        let body = body.as_ref().map(Json::to_string).unwrap_or_default();
        self.seen.surprise(format!(
            "at {at:.1} s, to {what}, {method} {path} {body} got {} {:?} {}",
            answer.status,
            answer.header("etag"),
            answer.text()
        ));
    }
}

impl Mine {
    fn path(&self) -> String {
        format!("/patients/{}", self.id)
    }

    fn tag(&self) -> String {
        format!("\"{}\"", self.version)
    }

    /// Whether an answer shows this patient in this version.
    fn is(&self, answer: &Answer) -> bool {
        let body = answer.json();
        answer.status == 200
            && version(answer) == Some(self.version)
            && body["name"] == self.name.as_str()
            && body["email"] == self.email.as_str()
    }
}

fn details(name: &str, email: &str) -> Json {
    json!({"name": name, "email": email, "address": "1 Main Street", "dateOfBirth": "1990-12-31"})
}

fn version(answer: &Answer) -> Option<i64> {
    answer.header("etag")?.trim_matches('"').parse().ok()
}
