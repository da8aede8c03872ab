//! Spans: pieces of work with their time, their outcome and their place in a trace.
//!
//! As long as nobody has called [`collect`], a span allocates nothing and goes nowhere. A span holds nothing about a
//! person: names of routes, statements and topics, codes, numbers.

use std::{
    borrow::Cow,
    cell::RefCell,
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use crate::TraceContext;

/// The outcome of work that was dropped before its end.
const BROKEN_OFF: &str = "cancelled";

static SINK: OnceLock<Sink> = OnceLock::new();

type Sink = Box<dyn Fn(Finished) + Send + Sync>;

thread_local! {
    /// The span of the work that this thread is polling.
    static CURRENT: RefCell<Span> = const { RefCell::new(Span::NONE) };
}

/// Gives every span that ends from now on to `sink`, which must not wait. The first call in a process counts.
pub fn collect(sink: impl Fn(Finished) + Send + Sync + 'static) {
    // A second service in the process of a test is collected with the first.
    let _ = SINK.set(Box::new(sink));
}

/// Whether somebody collects spans.
pub fn is_collected() -> bool {
    SINK.get().is_some()
}

/// What a span is to its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work within a service.
    Internal,
    /// An answer to another program.
    Server,
    /// A question to another program.
    Client,
    /// A message that is sent, to be handled later.
    Producer,
    /// The handling of a message.
    Consumer,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(Cow<'static, str>),
    /// A whole number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// A span that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its ids and its parent's.
    pub context: TraceContext,
    /// What it is to its neighbours.
    pub kind: Kind,
    /// What was done, in few words that many spans share.
    pub name: Cow<'static, str>,
    /// When it began.
    pub started: SystemTime,
    /// How long it lasted.
    pub lasted: Duration,
    /// What else is known of it, by the names of OpenTelemetry's semantic conventions.
    pub attributes: Vec<(&'static str, Value)>,
    /// What happened within it, and how long after its beginning.
    pub events: Vec<(Duration, Cow<'static, str>)>,
    /// Why it failed, if it did: a word that many spans share.
    pub error: Option<Cow<'static, str>>,
}

/// A piece of work under way. Dropped without [`end`](Self::end) or [`fail`](Self::fail), it was broken off.
///
/// ```
/// use telemetry::{Span, TraceContext, span::Kind};
///
/// # smol::block_on(async {
/// let mut request = Span::start(TraceContext::root(), Kind::Server, "GET /hello");
/// request.scope(async { Span::child(Kind::Client, "find greeting").end() }).await;
/// request.end();
/// # });
/// ```
#[derive(Debug)]
pub struct Span {
    context: Option<TraceContext>,
    recording: Option<Box<Recording>>,
}

#[derive(Debug)]
struct Recording {
    since: Instant,
    span: Finished,
}

impl Span {
    /// Work of no trace: nothing within it is recorded either, unless it begins a trace of its own.
    pub const NONE: Self = Self { context: None, recording: None };

    /// Begins the work that `context` names. It is recorded if spans are collected and the trace is sampled.
    pub fn start(context: TraceContext, kind: Kind, name: &'static str) -> Self {
        let recorded = context.sampled() && is_collected();
        let recording = recorded.then(|| {
            let span = Finished {
                context,
                kind,
                name: name.into(),
                started: SystemTime::now(),
                lasted: Duration::ZERO,
                attributes: Vec::new(),
                events: Vec::new(),
                error: None,
            };
            Box::new(Recording { since: Instant::now(), span })
        });
        Self { context: Some(context), recording }
    }

    /// Begins work on behalf of the span around this call; where there is none, it is not recorded.
    pub fn child(kind: Kind, name: &'static str) -> Self {
        match TraceContext::current() {
            Some(context) => Self::start(context.child(), kind, name),
            None => Self::NONE,
        }
    }

    /// Does something with the span around this call, if it is recorded. No span may be begun within.
    pub fn with_current(change: impl FnOnce(&mut Self)) {
        if is_collected() {
            CURRENT.with_borrow_mut(|current| {
                if current.is_recorded() {
                    change(current);
                }
            });
        }
    }

    /// Whether it is recorded. It need not be asked, except to spare the making of a name or a value.
    pub fn is_recorded(&self) -> bool {
        self.recording.is_some()
    }

    /// Its name; empty if it is not recorded.
    pub fn name(&self) -> &str {
        self.recording.as_ref().map_or("", |recording| &recording.span.name)
    }

    /// Gives it another name.
    pub fn rename(&mut self, name: impl FnOnce() -> String) {
        if let Some(recording) = &mut self.recording {
            recording.span.name = name().into();
        }
    }

    /// Adds an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(recording) = &mut self.recording {
            recording.span.attributes.push((name, value.into()));
        }
    }

    /// Adds something that happens now.
    pub fn event(&mut self, name: impl Into<Cow<'static, str>>) {
        if let Some(recording) = &mut self.recording {
            recording.span.events.push((recording.since.elapsed(), name.into()));
        }
    }

    /// Does `work` with this as the span around it, on whatever threads it is polled.
    pub async fn scope<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            let _entered = Entered::new(self);
            work.as_mut().poll(context)
        })
        .await
    }

    /// Ends it well.
    pub fn end(mut self) {
        self.finish(None);
    }

    /// Ends it with an error, named by a word that many spans share.
    pub fn fail(mut self, error: impl Into<Cow<'static, str>>) {
        self.finish(Some(error.into()));
    }

    fn finish(&mut self, error: Option<Cow<'static, str>>) {
        if let Some(recording) = self.recording.take()
            && let Some(sink) = SINK.get()
        {
            let Recording { since, span } = *recording;
            sink(Finished { lasted: since.elapsed(), error, ..span });
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.finish(Some(BROKEN_OFF.into()));
    }
}

impl TraceContext {
    /// That of the work around this call, as long as somebody collects spans.
    pub fn current() -> Option<Self> {
        if !is_collected() {
            return None;
        }
        // It is borrowed while a span is changed, and a line that is logged meanwhile has no place.
        CURRENT.with(|current| current.try_borrow().ok()?.context)
    }

    /// Does `work` on behalf of this context: spans begun within are its children.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        Span { context: Some(self), recording: None }.scope(work).await
    }
}

/// The time of one poll, in which a span stands in [`CURRENT`] and the one around it waits in its place.
struct Entered<'a>(&'a mut Span);

impl<'a> Entered<'a> {
    fn new(span: &'a mut Span) -> Self {
        CURRENT.with_borrow_mut(|current| mem::swap(current, span));
        Self(span)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|current| mem::swap(current, self.0));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{Mutex, PoisonError},
    };

    use super::*;

    static ENDED: Mutex<Vec<Finished>> = Mutex::new(Vec::new());

    /// The spans of one trace, by name. Tests share the process's sink.
    fn ended(trace: TraceContext) -> Vec<Finished> {
        let ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended: Vec<_> =
            ended.iter().filter(|span| span.context.trace_id() == trace.trace_id()).cloned().collect();
        ended.sort_by(|a, b| a.name.cmp(&b.name));
        ended
    }

    fn collected() -> TraceContext {
        collect(|span| ENDED.lock().unwrap_or_else(PoisonError::into_inner).push(span));
        TraceContext::root()
    }

    #[test]
    fn children_find_their_parent_across_threads_and_beside_each_other() {
        let trace = collected();
        let request = |name| async move {
            let mut span = Span::start(trace.child(), Kind::Server, name);
            let work = async {
                for _ in 0..10 {
                    smol::future::yield_now().await;
                    assert_eq!(TraceContext::current().map(TraceContext::span_id), span_id(name));
                }
                Span::child(Kind::Client, "statement").end();
            };
            NAMES.lock().unwrap().push((name, span.context.unwrap().span_id()));
            span.scope(work).await;
            span.end();
        };
        static NAMES: Mutex<Vec<(&str, String)>> = Mutex::new(Vec::new());
        fn span_id(name: &str) -> Option<String> {
            NAMES.lock().unwrap().iter().find(|(found, _)| *found == name).map(|(_, id)| id.clone())
        }
        let executor = smol::Executor::new();
        let (running, stopped) = smol::channel::bounded::<()>(1);
        std::thread::scope(|threads| {
            for _ in 0..3 {
                threads.spawn(|| smol::block_on(executor.run(stopped.recv())));
            }
            smol::block_on(async {
                let tasks: Vec<_> = ["a", "b", "c"].map(|name| executor.spawn(request(name))).into();
                for task in tasks {
                    task.await;
                }
                drop(running);
            });
        });
        let spans = ended(trace);
        let (requests, statements): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.kind == Kind::Server);
        assert_eq!((requests.len(), statements.len()), (3, 3));
        for request in requests {
            let children = statements.iter().filter(|span| span.context.ids().2 == Some(request.context.ids().1));
            assert_eq!(children.count(), 1, "{}", request.name);
        }
        assert!(TraceContext::current().is_none());
    }

    #[test]
    fn what_is_dropped_or_panics_is_recorded_as_broken_off() {
        let trace = collected();
        let mut dropped = Span::start(trace.child(), Kind::Server, "dropped");
        drop(dropped.scope(std::future::pending::<()>()));
        drop(dropped);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut span = Span::start(trace.child(), Kind::Server, "panicked");
            smol::block_on(span.scope(async { panic!("this panic belongs to the test") }))
        }));
        assert!(panicked.is_err() && TraceContext::current().is_none());
        Span::start(trace.child(), Kind::Client, "refused").fail("unavailable");
        let errors: Vec<_> = ended(trace).into_iter().map(|span| (span.name, span.error.unwrap())).collect();
        let expected = [("dropped", BROKEN_OFF), ("panicked", BROKEN_OFF), ("refused", "unavailable")];
        assert_eq!(errors, expected.map(|(name, error)| (name.into(), error.into())));
    }

    #[test]
    fn a_trace_that_nobody_wants_is_not_recorded() {
        let trace = collected();
        let unwanted = format!("00-{}-{}-00", trace.trace_id(), trace.span_id());
        let mut span = Span::start(TraceContext::continue_from(Some(&unwanted)), Kind::Server, "unwanted");
        smol::block_on(span.scope(async {
            assert!(!Span::child(Kind::Client, "statement").is_recorded());
            Span::with_current(|_| panic!("there is nothing to change"));
        }));
        span.end();
        assert_eq!(ended(trace), []);
    }
}
