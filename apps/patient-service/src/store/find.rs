//! Patients by id. Requests that come while statements of others are under way are answered together, by the next one.
//!
//! A statement of many ids costs the database little more than one of a single id, and most of what a statement costs
//! us is there once. A request that comes alone waits for nobody: its statement begins at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use postgres::{Database, Error, query};
use smol::channel::{self, Sender};
use telemetry::{Span, span::Kind};
use uuid::Uuid;

use super::patient;
use crate::patient::Patient;

/// Statements at once: while the answers of one are handed out, the database works on another.
const AT_ONCE: usize = 2;
/// Patients that one statement asks for, at most.
const MOST: usize = 256;

/// Finds patients by id.
#[derive(Clone, Debug)]
pub(super) struct Finder {
    database: Database,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// Statements under way.
    running: usize,
}

/// Somebody who waits for a patient.
#[derive(Debug)]
struct Waiting {
    id: Uuid,
    since: Instant,
    answer: Sender<Result<Option<Patient>, Error>>,
}

impl Finder {
    pub(super) fn new(database: Database) -> Self {
        Self { database, queue: Arc::default() }
    }

    /// The patient as it is at some time between the call and the answer.
    pub(super) async fn find(&self, id: Uuid) -> Result<Option<Patient>, Error> {
        // The statement belongs to many requests, and each has a span of its own for it.
        let mut span = Span::child(Kind::Client, "find patient");
        span.set("db.system.name", "postgresql");
        span.set("db.query.summary", "find patient");
        let (answer, answered) = channel::bounded(1);
        self.lock().waiting.push(Waiting { id, since: Instant::now(), answer });
        self.start();
        let result = answered.recv().await;
        let result = result.unwrap_or_else(|_| Err(Error::Unavailable("the statement was broken off".into())));
        match &result {
            Ok(_) => span.end(),
            Err(error) => span.fail(error.outcome()),
        }
        result
    }

    /// Begins a statement if somebody waits for one and it is not one too many.
    fn start(&self) {
        let mut queue = self.lock();
        if !queue.waiting.is_empty() && queue.running < AT_ONCE {
            queue.running += 1;
            // A task of its own, because a request can be broken off and others wait for the same statement.
            runtime::spawn(Running(self.clone()).answer_all()).detach();
        }
    }

    /// Those who have waited longest; others than these wait for a later statement.
    fn take(&self) -> Vec<Waiting> {
        let mut queue = self.lock();
        let count = queue.waiting.len().min(MOST);
        let rest = queue.waiting.split_off(count);
        std::mem::replace(&mut queue.waiting, rest)
    }

    async fn answer(&self, mut waiting: Vec<Waiting>) {
        let limit = self.database.acquire_limit();
        waiting.retain(|one| {
            let late = one.since.elapsed() > limit;
            if late {
                tell(one, Err(Error::Unavailable("too many requests wait for the database".into())));
            }
            !late && !one.answer.is_closed()
        });
        if waiting.is_empty() {
            return;
        }
        match self.select(waiting.iter().map(|one| one.id).collect()).await {
            Ok(patients) => waiting.iter().for_each(|one| tell(one, Ok(patients.get(&one.id).cloned()))),
            Err(error) => waiting.iter().for_each(|one| tell(one, Err(error.for_another()))),
        }
    }

    async fn select(&self, ids: Vec<Uuid>) -> Result<HashMap<Uuid, Patient>, Error> {
        let find = self.database.run(async |connection| {
            let rows = query(
                "-- find patients
                SELECT id, name, email, address, date_of_birth, registered_date, version FROM patients WHERE id = ANY($1)",
            )
            .bind(ids)
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| patient(row).map(|patient| (patient.id, patient))).collect()
        });
        find.await
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(waiting: &Waiting, result: Result<Option<Patient>, Error>) {
    // Whoever broke off needs no answer.
    let _ = waiting.answer.try_send(result);
}

/// A place among the statements under way, given back whatever happens.
struct Running(Finder);

impl Running {
    async fn answer_all(self) {
        loop {
            let waiting = self.0.take();
            if waiting.is_empty() {
                return;
            }
            self.0.answer(waiting).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        // Somebody may have come after the last look.
        self.0.start();
    }
}
