//! Work of one kind that many ask for at the same time, done by one statement.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use runtime::timeout;
use smol::channel::{self, Receiver, Sender};
use telemetry::{Span, span::Kind};

use crate::{Database, Error};

/// Statements at once: while the answers of one are handed out, the database works on another.
const AT_ONCE: usize = 2;
/// Requests that wait, at most, as so many statements take. The time for which one may wait is bounded too; this bounds
/// the memory that they take meanwhile.
const MAX_WAITING_STATEMENTS: usize = 16;

/// A statement that does for many what they have asked for.
pub trait BatchStatement: Send + Sync + 'static {
    /// What one asks for.
    type Request: Send + Sync + 'static;
    /// What one is told.
    type Answer: Send + 'static;
    /// The name of the span that each request has.
    const NAME: &'static str;
    /// Requests that one statement takes, at most.
    const MAX_REQUESTS: usize;

    /// Does it for all or, if it fails, for none of them; gives an answer for each, in their order.
    fn execute(
        database: &Database,
        requests: &[Self::Request],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, Error>> + Send;
}

/// Collects the requests that come while statements are under way, for the next one. A statement for many costs the
/// database, and us, little more than one for a single request. A request that comes alone waits for nobody: its
/// statement begins at once.
///
/// A request that makes a statement fail does not harm the others: each is then done by itself.
pub struct Batcher<S: BatchStatement> {
    database: Database,
    queue: Arc<Mutex<Queue<S>>>,
    /// When whoever asks wants an answer at the latest, if that is not measured for each request alone.
    until: Option<Instant>,
}

struct Queue<S: BatchStatement> {
    waiting: Vec<Waiting<S>>,
    /// Statements under way.
    running: usize,
}

/// A request, and who waits for its answer.
struct Waiting<S: BatchStatement> {
    request: S::Request,
    since: Instant,
    answer: Sender<Result<S::Answer, Error>>,
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
        Self { database, queue: Arc::new(Mutex::new(Queue { waiting: Vec::new(), running: 0 })), until: None }
    }

    /// The same batcher for several requests that have one deadline together: that of a single one.
    #[must_use]
    pub fn with_one_deadline(&self) -> Self {
        Self { until: Some(Instant::now() + self.database.work_limit()), ..self.clone() }
    }

    /// The answer of a statement that begins after this call. A request that is given up before is never executed.
    ///
    /// # Errors
    /// Why this request could not be done, or why the database could do none; [`Error::QueueFull`] if too many wait.
    pub async fn submit(&self, request: S::Request) -> Result<S::Answer, Error> {
        // The statement belongs to many requests, and each has a span of its own for it.
        let mut span = Span::child(Kind::Client, S::NAME);
        span.set("db.system.name", "postgresql");
        span.set("db.query.summary", S::NAME);
        let result = match self.enqueue(request) {
            Ok(answered) => {
                self.start();
                // Those before it may wait for a database that says nothing.
                let limit = self.database.work_limit();
                let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
                let answer = timeout(left.map_or(limit, |left| left.min(limit)), answered.recv()).await;
                let answer = answer.map_err(|late| Error::Unavailable(late.to_string().into()));
                let broken_off = |_| Error::Unavailable("the statement was broken off".into());
                answer.and_then(|answer| answer.map_err(broken_off)).flatten()
            }
            Err(full) => Err(full),
        };
        match &result {
            Ok(_) => span.end(),
            Err(error) => span.fail(error.outcome()),
        }
        result
    }

    fn enqueue(&self, request: S::Request) -> Result<Receiver<Result<S::Answer, Error>>, Error> {
        let mut queue = self.lock();
        if queue.waiting.len() >= S::MAX_REQUESTS * MAX_WAITING_STATEMENTS {
            // Those who have gone keep no place.
            queue.waiting.retain(|one| !one.answer.is_closed());
        }
        if queue.waiting.len() >= S::MAX_REQUESTS * MAX_WAITING_STATEMENTS {
            return Err(Error::QueueFull);
        }
        let (answer, answered) = channel::bounded(1);
        queue.waiting.push(Waiting { request, since: Instant::now(), answer });
        Ok(answered)
    }

    /// Begins a statement if somebody waits for one and it is not one too many.
    fn start(&self) {
        let mut queue = self.lock();
        if !queue.waiting.is_empty() && queue.running < AT_ONCE {
            queue.running += 1;
            // A task of its own, because a request can be broken off and others wait for the same statement.
            runtime::spawn(Running(Self { until: None, ..self.clone() }).answer_all()).detach();
        }
    }

    /// Those who have waited longest; others than these wait for a later statement.
    fn take(&self) -> Vec<Waiting<S>> {
        let mut queue = self.lock();
        let count = queue.waiting.len().min(S::MAX_REQUESTS);
        let rest = queue.waiting.split_off(count);
        std::mem::replace(&mut queue.waiting, rest)
    }

    async fn answer(&self, mut waiting: Vec<Waiting<S>>) {
        let limit = self.database.acquire_limit();
        waiting.retain(|one| {
            let late = one.since.elapsed() > limit;
            if late {
                tell(&one.answer, Err(Error::Unavailable("too many requests wait for the database".into())));
            }
            !late && !one.answer.is_closed()
        });
        if waiting.is_empty() {
            return;
        }
        // None of them gets its answer later than if it had been alone.
        let since = waiting.iter().map(|one| one.since).min().unwrap_or_else(Instant::now);
        let database = self.database.until(since + self.database.work_limit());
        let (requests, answers): (Vec<_>, Vec<_>) = waiting.into_iter().map(|one| (one.request, one.answer)).unzip();
        match S::execute(&database, &requests).await {
            Ok(results) => answers.iter().zip(results).for_each(|(answer, result)| tell(answer, Ok(result))),
            Err(error) if requests.len() > 1 && error.is_of_the_statement() => {
                // Not here: whichever it is, it may fail slowly, and others wait for the next statement.
                for (request, answer) in requests.into_iter().zip(answers) {
                    runtime::spawn(alone::<S>(database.clone(), request, answer)).detach();
                }
            }
            Err(error) => answers.iter().for_each(|answer| tell(answer, Err(error.for_another()))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<S>> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn alone<S: BatchStatement>(database: Database, request: S::Request, answer: Sender<Result<S::Answer, Error>>) {
    let result = S::execute(&database, &[request]).await;
    tell(&answer, result.and_then(|answers| answers.into_iter().next().ok_or(Error::Query(sqlx::Error::RowNotFound))));
}

fn tell<T>(answer: &Sender<Result<T, Error>>, result: Result<T, Error>) {
    // Whoever broke off needs no answer.
    let _ = answer.try_send(result);
}

/// A place among the statements under way, given back whatever happens.
struct Running<S: BatchStatement>(Batcher<S>);

impl<S: BatchStatement> Running<S> {
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

impl<S: BatchStatement> Drop for Running<S> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        // Somebody may have come after the last look.
        self.0.start();
    }
}
