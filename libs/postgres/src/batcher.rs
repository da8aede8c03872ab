//! Batching: concurrent requests of one kind share one statement.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use runtime::timeout;
use smol::channel::{self, Receiver, Sender};
use telemetry::{Span, SpanKind};

use crate::{Database, Error};

/// Statements that run at the same time: while the responses of one are handed out, the database works on another.
const MAX_CONCURRENT: usize = 2;
/// Limit of the queue, in full statements. The waiting time is bounded too; this bounds the memory of the queue.
const MAX_WAITING_STATEMENTS: usize = 16;
/// How long one of these statements waits for locks of other transactions: the requests behind it wait with it.
const SHARED_LOCK_TIMEOUT: Duration = Duration::from_millis(100);
/// As [`SHARED_LOCK_TIMEOUT`], for a request of such a statement that is executed by itself. What is still locked now is to be known
/// soon.
const RETRY_LOCK_TIMEOUT: Duration = Duration::from_millis(10);

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
    /// be several. A request that others have locked keeps its subject while it waits.
    fn subject(_request: &Self::Request) -> Option<u128> {
        None
    }

    /// Until when a request may wait for others that have locked what it needs, if that is earlier than its
    /// [`Database::lock_timeout`] ends: before its caller gives up, who would take a lock for an outage.
    fn wait_until(_request: &Self::Request) -> Option<Instant> {
        None
    }

    /// Executes all requests or, if it fails, none of them; returns their responses in the same order. A statement that locks
    /// rows sets [`Database::lock_timeout`] for itself.
    fn execute(
        database: &Database,
        requests: &[Self::Request],
    ) -> impl Future<Output = Result<Vec<Self::Response>, Error>> + Send;
}

/// Collects the requests that arrive while statements are running, and executes them with the next one. A statement for
/// many requests costs the database and this process little more than one for a single request. A request that finds no
/// statement running is executed at once.
///
/// If one request makes a statement fail, each request of the batch is executed again by itself, so the others succeed. A
/// request that another transaction has locked leaves its statement after 100 ms and waits by itself, on one of few
/// connections.
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
        one.waiter.subject.is_none_or(|subject| !self.subjects.contains(&subject))
    }

    fn next_batch(&mut self) -> Vec<PendingRequest<S>> {
        let (mut batch, mut rest) = (Vec::new(), Vec::new());
        for one in std::mem::take(&mut self.waiting) {
            let is_next = batch.len() < S::MAX_REQUESTS && self.may_start(&one);
            if is_next { &mut batch } else { &mut rest }.push(one);
        }
        self.waiting = rest;
        self.subjects.extend(batch.iter().filter_map(|one| one.waiter.subject));
        batch
    }
}

/// A request in the queue.
struct PendingRequest<S: BatchStatement> {
    request: S::Request,
    waiter: Waiter<S::Response>,
}

/// Who waits for the response to a request.
struct Waiter<T> {
    subject: Option<u128>,
    since: Instant,
    /// Whether a request of the same subject has waited for another transaction meanwhile.
    is_behind_lock: bool,
    response: Sender<Result<T, Error>>,
}

impl<T> Waiter<T> {
    fn respond(&self, result: Result<T, Error>) {
        // A cancelled request needs no response.
        let _ = self.response.try_send(result);
    }
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
            queue.waiting.retain(|one| !one.waiter.response.is_closed());
        }
        if queue.waiting.len() >= S::MAX_REQUESTS * MAX_WAITING_STATEMENTS {
            return Err(Error::QueueFull);
        }
        let (response, receiver) = channel::bounded(1);
        let (subject, since) = (S::subject(&request), Instant::now());
        let waiter = Waiter { subject, since, is_behind_lock: false, response };
        queue.waiting.push(PendingRequest { request, waiter });
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
        let subjects = waiting.iter().filter_map(|one| one.waiter.subject).collect();
        let batcher = Self { until: None, ..self.clone() };
        let mut running = RunningSubjects { batcher, subjects, have_waited: false };
        let limit = self.database.acquire_timeout();
        waiting.retain(|PendingRequest { waiter, .. }| {
            let late = waiter.since.elapsed() > limit;
            if late {
                let too_many = || Error::Unavailable("too many requests wait for the database".into());
                waiter.respond(Err(if waiter.is_behind_lock { Error::Locked } else { too_many() }));
            }
            !late && !waiter.response.is_closed()
        });
        if waiting.is_empty() {
            return;
        }
        // The deadline of the oldest request, so that none is answered later than if it had been executed by itself.
        let since = waiting.iter().map(|one| one.waiter.since).min().unwrap_or_else(Instant::now);
        let database = self.database.with_deadline(since + self.database.work_timeout());
        let (requests, waiters): (Vec<_>, Vec<_>) = waiting.into_iter().map(|one| (one.request, one.waiter)).unzip();
        match S::execute(&database.with_lock_timeout(SHARED_LOCK_TIMEOUT), &requests).await {
            Ok(results) => waiters.iter().zip(results).for_each(|(waiter, result)| waiter.respond(Ok(result))),
            Err(error) if error.is_statement_error() && (requests.len() > 1 || matches!(error, Error::Locked)) => {
                let is_locked = requests.len() == 1;
                // In tasks of their own: the one that fails may do so slowly, and others wait for the next statement.
                for group in by_subject(requests.into_iter().zip(waiters)) {
                    let running = running.split_off(group.first().and_then(|(_, waiter)| waiter.subject));
                    runtime::spawn(running.execute_each(group, is_locked)).detach();
                }
            }
            Err(error) => waiters.iter().for_each(|waiter| waiter.respond(Err(error.duplicate()))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<S>> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests in groups of one subject each, in their order; each of those without a subject is a group.
fn by_subject<R, T>(requests: impl Iterator<Item = (R, Waiter<T>)>) -> impl Iterator<Item = Vec<(R, Waiter<T>)>> {
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    for (n, (request, waiter)) in requests.enumerate() {
        groups.entry(waiter.subject.ok_or(n)).or_default().push((request, waiter));
    }
    groups.into_values()
}

/// The subjects of a statement that runs, free again when it is dropped.
struct RunningSubjects<S: BatchStatement> {
    batcher: Batcher<S>,
    subjects: HashSet<u128>,
    /// Whether one of their requests has waited for another transaction. Those behind it in the queue have waited with it, whatever
    /// became of it: if they are late now, that shows no outage.
    have_waited: bool,
}

impl<S: BatchStatement> RunningSubjects<S> {
    /// One of the subjects by itself.
    fn split_off(&mut self, subject: Option<u128>) -> Self {
        let subjects = subject.into_iter().filter(|subject| self.subjects.remove(subject)).collect();
        Self { batcher: self.batcher.clone(), subjects, have_waited: false }
    }

    /// Executes requests of this subject one after the other. If one has waited for another transaction in vain, the others would
    /// too.
    async fn execute_each(mut self, group: Vec<(S::Request, Waiter<S::Response>)>, is_locked: bool) {
        let mut has_waited_in_vain = false;
        for (request, waiter) in group {
            if waiter.response.is_closed() {
                continue;
            }
            let result = match has_waited_in_vain {
                false => self.execute_alone(request, waiter.since, is_locked).await,
                true => Err(Error::Locked),
            };
            has_waited_in_vain = matches!(result, Err(Error::Locked));
            waiter.respond(result);
        }
    }

    /// Executes a request by itself. One that others have locked waits for them, as long as there are few such requests.
    async fn execute_alone(
        &mut self,
        request: S::Request,
        since: Instant,
        is_locked: bool,
    ) -> Result<S::Response, Error> {
        let database = &self.batcher.database;
        let limit = since + database.lock_timeout();
        let wait_until = S::wait_until(&request).map_or(limit, |until| until.min(limit));
        let left = || Some(wait_until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero());
        let database = database.with_deadline(since + database.work_timeout());
        let (shares, requests) = (database.pool_shares(), [request]);
        let execute = async |left| {
            let responses = S::execute(&database.with_lock_timeout(left), &requests).await?;
            responses.into_iter().next().ok_or(Error::Query(sqlx::Error::RowNotFound))
        };
        if !is_locked {
            let _permit = shares.retries.acquire(1).await;
            match execute(RETRY_LOCK_TIMEOUT).await {
                Err(Error::Locked) => {}
                result => return result,
            }
        }
        self.have_waited = true;
        let permit = timeout(left().ok_or(Error::Locked)?, shares.lock_waits.acquire(1)).await;
        let _permit = permit.map_err(|_| Error::Locked)?;
        execute(left().ok_or(Error::Locked)?).await
    }
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
            if self.have_waited {
                let waiters = queue.waiting.iter_mut().map(|one| &mut one.waiter);
                waiters
                    .filter(|waiter| waiter.subject.is_some_and(|subject| self.subjects.contains(&subject)))
                    .for_each(|waiter| waiter.is_behind_lock = true);
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
