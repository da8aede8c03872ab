//! Batching: concurrent requests of one kind share one statement.

use std::{
    collections::HashSet,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use runtime::timeout;
use smol::channel::{self, Receiver, Sender};
use telemetry::{Span, SpanKind};

use crate::{Database, Error};

/// Statements that run at the same time: while the responses of one are handed out, the database works on another.
const MAX_CONCURRENT: usize = 2;
/// Limit of the queue, in full statements. The waiting time is bounded too; this bounds the memory of the queue.
const MAX_WAITING_STATEMENTS: usize = 16;

/// A statement that executes many requests at once.
pub trait BatchStatement: Send + Sync + 'static {
    /// One request.
    type Request: Send + Sync + 'static;
    /// The response to one request.
    type Response: Send + 'static;
    /// Name of the span of each request, and of its `db.query.summary`.
    const NAME: &'static str;
    /// Requests in one statement, at most.
    const MAX_REQUESTS: usize;

    /// What a request is about, if no two statements that run at the same time may be about the same: a later request then
    /// waits for a later statement, as it would for a row that the earlier statement has locked. In one statement there may
    /// be several.
    fn subject(_request: &Self::Request) -> Option<u128> {
        None
    }

    /// Executes all requests or, if it fails, none of them; returns their responses in the same order.
    fn execute(
        database: &Database,
        requests: &[Self::Request],
    ) -> impl Future<Output = Result<Vec<Self::Response>, Error>> + Send;
}

/// Collects the requests that arrive while statements are running, and executes them with the next one. A statement for
/// many requests costs the database and this process little more than one for a single request. A request that finds no
/// statement running is executed at once.
///
/// If one request makes a statement fail, each request of the batch is executed again by itself, so the others succeed.
pub struct Batcher<S: BatchStatement> {
    database: Database,
    queue: Arc<Mutex<Queue<S>>>,
    /// Deadline of all requests through this clone; without it each request has its own.
    until: Option<Instant>,
}

struct Queue<S: BatchStatement> {
    waiting: Vec<PendingRequest<S>>,
    /// Statements that are running.
    running: usize,
    /// The subjects of their requests.
    subjects: HashSet<u128>,
}

impl<S: BatchStatement> Queue<S> {
    fn may_start(&self, one: &PendingRequest<S>) -> bool {
        S::subject(&one.request).is_none_or(|subject| !self.subjects.contains(&subject))
    }

    fn next_batch(&mut self) -> Vec<PendingRequest<S>> {
        let (mut batch, mut rest) = (Vec::new(), Vec::new());
        for one in std::mem::take(&mut self.waiting) {
            let is_next = batch.len() < S::MAX_REQUESTS && self.may_start(&one);
            if is_next { &mut batch } else { &mut rest }.push(one);
        }
        self.waiting = rest;
        self.subjects.extend(batch.iter().filter_map(|one| S::subject(&one.request)));
        batch
    }
}

/// A request in the queue, and the channel for its response.
struct PendingRequest<S: BatchStatement> {
    request: S::Request,
    since: Instant,
    response: Sender<Result<S::Response, Error>>,
}

impl<S: BatchStatement> Clone for Batcher<S> {
    fn clone(&self) -> Self {
        Self { database: self.database.clone(), queue: self.queue.clone(), until: self.until }
    }
}

impl<S: BatchStatement> fmt::Debug for Batcher<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("database", &self.database).finish_non_exhaustive()
    }
}

impl<S: BatchStatement> Batcher<S> {
    /// A batcher for statements on this database.
    pub fn new(database: Database) -> Self {
        let queue = Queue { waiting: Vec::new(), running: 0, subjects: HashSet::new() };
        Self { database, queue: Arc::new(Mutex::new(queue)), until: None }
    }

    /// The same batcher, whose requests from now on share one deadline: that of a single request that starts now.
    #[must_use]
    pub fn with_shared_deadline(&self) -> Self {
        Self { until: Some(Instant::now() + self.database.work_timeout()), ..self.clone() }
    }

    /// Executes a request with the next statement. A request whose future is dropped before that is not executed.
    ///
    /// # Errors
    /// Why this request failed, or why the database is unavailable; [`Error::QueueFull`] if too many requests wait.
    pub async fn submit(&self, request: S::Request) -> Result<S::Response, Error> {
        // The statement belongs to many requests, so each of them gets a span of its own for it.
        let mut span = Span::child(SpanKind::Client, S::NAME);
        span.set("db.system.name", "postgresql");
        span.set("db.query.summary", S::NAME);
        let result = match self.enqueue(request) {
            Ok(receiver) => {
                self.start();
                // The requests before it may wait for a database that does not respond.
                let limit = self.database.work_timeout();
                let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
                let response = timeout(left.map_or(limit, |left| left.min(limit)), receiver.recv()).await;
                let response = response.map_err(|late| Error::Unavailable(late.to_string().into()));
                let cancelled = |_| Error::Unavailable("the statement was cancelled".into());
                response.and_then(|response| response.map_err(cancelled)).flatten()
            }
            Err(full) => Err(full),
        };
        match &result {
            Ok(_) => span.end(),
            Err(error) => span.fail(error.outcome()),
        }
        result
    }

    fn enqueue(&self, request: S::Request) -> Result<Receiver<Result<S::Response, Error>>, Error> {
        let mut queue = self.lock();
        if queue.waiting.len() >= S::MAX_REQUESTS * MAX_WAITING_STATEMENTS {
            // Cancelled requests need no room in the queue.
            queue.waiting.retain(|one| !one.response.is_closed());
        }
        if queue.waiting.len() >= S::MAX_REQUESTS * MAX_WAITING_STATEMENTS {
            return Err(Error::QueueFull);
        }
        let (response, receiver) = channel::bounded(1);
        queue.waiting.push(PendingRequest { request, since: Instant::now(), response });
        Ok(receiver)
    }

    /// Starts a statement if requests wait and fewer than [`MAX_CONCURRENT`] are running.
    fn start(&self) {
        let mut queue = self.lock();
        if queue.running < MAX_CONCURRENT && queue.waiting.iter().any(|one| queue.may_start(one)) {
            queue.running += 1;
            // A task of its own, because the request that started it can be cancelled while others wait for the
            // statement.
            runtime::spawn(StatementSlot(Self { until: None, ..self.clone() }).execute_all()).detach();
        }
    }

    /// Takes the oldest requests that may start from the queue, as many as one statement executes.
    fn next_batch(&self) -> Vec<PendingRequest<S>> {
        self.lock().next_batch()
    }

    async fn execute(&self, mut waiting: Vec<PendingRequest<S>>) {
        let subjects = waiting.iter().filter_map(|one| S::subject(&one.request)).collect();
        let _running = RunningSubjects { batcher: Self { until: None, ..self.clone() }, subjects };
        let limit = self.database.acquire_timeout();
        waiting.retain(|one| {
            let late = one.since.elapsed() > limit;
            if late {
                respond(&one.response, Err(Error::Unavailable("too many requests wait for the database".into())));
            }
            !late && !one.response.is_closed()
        });
        if waiting.is_empty() {
            return;
        }
        // The deadline of the oldest request, so that none is answered later than if it had been executed by itself.
        let since = waiting.iter().map(|one| one.since).min().unwrap_or_else(Instant::now);
        let database = self.database.with_deadline(since + self.database.work_timeout());
        let (requests, responses): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(|one| (one.request, one.response)).unzip();
        match S::execute(&database, &requests).await {
            Ok(results) => responses.iter().zip(results).for_each(|(response, result)| respond(response, Ok(result))),
            Err(error) if requests.len() > 1 && error.is_statement_error() => {
                // In tasks of their own: the one that fails may do so slowly, and others wait for the next statement.
                for (request, response) in requests.into_iter().zip(responses) {
                    runtime::spawn(execute_alone::<S>(database.clone(), request, response)).detach();
                }
            }
            Err(error) => responses.iter().for_each(|response| respond(response, Err(error.duplicate()))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<S>> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn execute_alone<S: BatchStatement>(
    database: Database,
    request: S::Request,
    response: Sender<Result<S::Response, Error>>,
) {
    let result = S::execute(&database, &[request]).await;
    respond(
        &response,
        result.and_then(|responses| responses.into_iter().next().ok_or(Error::Query(sqlx::Error::RowNotFound))),
    );
}

fn respond<T>(response: &Sender<Result<T, Error>>, result: Result<T, Error>) {
    // A cancelled request needs no response.
    let _ = response.try_send(result);
}

/// The subjects of a statement that runs, free again when it is dropped.
struct RunningSubjects<S: BatchStatement> {
    batcher: Batcher<S>,
    subjects: Vec<u128>,
}

impl<S: BatchStatement> Drop for RunningSubjects<S> {
    fn drop(&mut self) {
        if self.subjects.is_empty() {
            return;
        }
        {
            let mut queue = self.batcher.lock();
            for subject in &self.subjects {
                queue.subjects.remove(subject);
            }
        }
        // Requests may have waited for one of them.
        self.batcher.start();
    }
}

/// One of the [`MAX_CONCURRENT`] statements; its slot is free again when it is dropped.
struct StatementSlot<S: BatchStatement>(Batcher<S>);

impl<S: BatchStatement> StatementSlot<S> {
    async fn execute_all(self) {
        loop {
            let waiting = self.0.next_batch();
            if waiting.is_empty() {
                return;
            }
            self.0.execute(waiting).await;
        }
    }
}

impl<S: BatchStatement> Drop for StatementSlot<S> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        // Requests may have arrived after the last batch was taken.
        self.0.start();
    }
}
