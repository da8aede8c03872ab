//! Spans: pieces of work with their duration, their outcome and their parent in a trace.
//!
//! Without a call to [`collect`], a span allocates nothing and is not recorded. A span never holds personal data: only
//! names of routes, statements and topics, codes and numbers.

use std::{
    borrow::{BorrowMut, Cow},
    cell::RefCell,
    future::Future,
    mem,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use pin_project_lite::pin_project;

use crate::TraceContext;

/// The error of work that was dropped before its end.
const CANCELLED: &str = "cancelled";

static SINK: OnceLock<Sink> = OnceLock::new();

type Sink = Box<dyn Fn(FinishedSpan) + Send + Sync>;

thread_local! {
    /// The span of the future that this thread is polling.
    static CURRENT: RefCell<Span> = const { RefCell::new(Span::NONE) };
}

/// Passes every span that ends from now on to `sink`, which must not block. Only the first call in a process takes
/// effect.
pub fn collect(sink: impl Fn(FinishedSpan) + Send + Sync + 'static) {
    // In a test with two services in one process, both use the first sink.
    let _ = SINK.set(Box::new(sink));
}

/// Whether spans are collected at all.
pub fn is_collected() -> bool {
    SINK.get().is_some()
}

/// The kind of a span, as in OpenTelemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Work within a service.
    Internal,
    /// Handling a request of another program.
    Server,
    /// A request to another program.
    Client,
    /// Sending a message.
    Producer,
    /// Handling a message.
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
pub struct FinishedSpan {
    /// Its ids and its parent's.
    pub context: TraceContext,
    /// Its kind.
    pub kind: SpanKind,
    /// Name of low cardinality, such as the route or the statement.
    pub name: Cow<'static, str>,
    /// When it started.
    pub started: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// Attributes, named by OpenTelemetry's semantic conventions.
    pub attributes: Vec<(&'static str, Value)>,
    /// Events within it, with the time since its start.
    pub events: Vec<(Duration, Cow<'static, str>)>,
    /// The span of another trace that it has to do with.
    pub link: Option<TraceContext>,
    /// `error.type` of low cardinality, if it failed.
    pub error: Option<Cow<'static, str>>,
}

/// A span that has not ended. Dropped without [`end`](Self::end) or [`fail`](Self::fail), it ends as cancelled.
///
/// ```
/// use telemetry::{Span, TraceContext, span::SpanKind};
///
/// # smol::block_on(async {
/// let mut request = Span::start(TraceContext::root(), SpanKind::Server, "GET /hello");
/// request.scope(async { Span::child(SpanKind::Client, "find greeting").end() }).await;
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
    span: FinishedSpan,
}

impl Span {
    /// No span and no trace: spans started within it are not recorded either, unless they start a trace of their own.
    pub const NONE: Self = Self { context: None, recording: None };

    /// Starts the span with the ids of `context`. It is recorded if spans are collected and the trace is sampled.
    pub fn start(context: TraceContext, kind: SpanKind, name: &'static str) -> Self {
        let recorded = context.sampled() && is_collected();
        let recording = recorded.then(|| {
            let span = FinishedSpan {
                context,
                kind,
                name: name.into(),
                started: SystemTime::now(),
                duration: Duration::ZERO,
                attributes: Vec::new(),
                events: Vec::new(),
                link: None,
                error: None,
            };
            Box::new(Recording { since: Instant::now(), span })
        });
        Self { context: Some(context), recording }
    }

    /// Starts a child of the current span; without one it is not recorded.
    pub fn child(kind: SpanKind, name: &'static str) -> Self {
        match TraceContext::current() {
            Some(context) => Self::start(context.child(), kind, name),
            None => Self::NONE,
        }
    }

    /// Changes the current span, if it is recorded. `change` must not start a span.
    pub fn with_current(change: impl FnOnce(&mut Self)) {
        if is_collected() {
            CURRENT.with_borrow_mut(|current| {
                if current.is_recorded() {
                    change(current);
                }
            });
        }
    }

    /// Whether it is recorded. Check it only to avoid computing an expensive name or value.
    pub fn is_recorded(&self) -> bool {
        self.recording.is_some()
    }

    /// Its name; empty if it is not recorded.
    pub fn name(&self) -> &str {
        self.recording.as_ref().map_or("", |recording| &recording.span.name)
    }

    /// Changes the name; `name` is called only if it is recorded.
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

    /// Links it to a span of another trace.
    pub fn link(&mut self, other: TraceContext) {
        if let Some(recording) = &mut self.recording {
            recording.span.link = Some(other);
        }
    }

    /// Adds an event that happens now.
    pub fn event(&mut self, name: impl Into<Cow<'static, str>>) {
        if let Some(recording) = &mut self.recording {
            recording.span.events.push((recording.since.elapsed(), name.into()));
        }
    }

    /// Runs `work` with this as the current span, on whatever threads it is polled.
    pub fn scope<F: Future>(&mut self, work: F) -> impl Future<Output = F::Output> {
        Scope { work, span: self }
    }

    /// Ends the span without an error.
    pub fn end(mut self) {
        self.finish(None);
    }

    /// Ends the span with an error type of low cardinality.
    pub fn fail(mut self, error: impl Into<Cow<'static, str>>) {
        self.finish(Some(error.into()));
    }

    fn finish(&mut self, error: Option<Cow<'static, str>>) {
        if let Some(recording) = self.recording.take()
            && let Some(sink) = SINK.get()
        {
            let Recording { since, span } = *recording;
            sink(FinishedSpan { duration: since.elapsed(), error, ..span });
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.finish(Some(CANCELLED.into()));
    }
}

impl TraceContext {
    /// The context of the current span, if spans are collected.
    pub fn current() -> Option<Self> {
        if !is_collected() {
            return None;
        }
        // It is borrowed while `with_current` runs; a line logged meanwhile gets no span.
        CURRENT.with(|current| current.try_borrow().ok()?.context)
    }

    /// Runs `work` within this context: spans that it starts are its children.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        Scope { work, span: Span { context: Some(self), recording: None } }
    }
}

pin_project! {
    /// Work with its current span. A type, because an async function would hold the work twice: as its argument, and
    /// where it awaits it; and each layer around it twice again.
    struct Scope<F, S> {
        // Dropped before the span.
        #[pin]
        work: F,
        span: S,
    }
}

impl<F: Future, S: BorrowMut<Span>> Future for Scope<F, S> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = Entered::new(this.span.borrow_mut());
        this.work.poll(context)
    }
}

/// During one poll, swaps a span into [`CURRENT`] and restores the previous one when dropped.
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

    static ENDED: Mutex<Vec<FinishedSpan>> = Mutex::new(Vec::new());

    /// The spans of one trace, by name. Tests share the process's sink.
    fn ended(trace: TraceContext) -> Vec<FinishedSpan> {
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
    fn scopes_hold_their_work_once() {
        let work = || async {
            let held = [0_u8; 1024];
            std::future::pending::<()>().await;
            held
        };
        let trace = TraceContext::continue_from(None);
        let mut span = Span::start(trace, SpanKind::Server, "GET");
        let scoped = crate::Propagated::default().scope(span.scope(trace.scope(work())));
        let (alone, scoped) = (size_of_val(&work()), size_of_val(&scoped));
        assert!((1024..1024 + 512).contains(&scoped), "{scoped} bytes for work of {alone}");
    }

    #[test]
    fn concurrent_spans_on_several_threads_keep_their_parents() {
        let trace = collected();
        let request = |name| async move {
            let mut span = Span::start(trace.child(), SpanKind::Server, name);
            let work = async {
                for _ in 0..10 {
                    smol::future::yield_now().await;
                    assert_eq!(TraceContext::current().map(TraceContext::span_id), span_id(name));
                }
                Span::child(SpanKind::Client, "statement").end();
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
        let (requests, statements): (Vec<_>, Vec<_>) = spans.iter().partition(|span| span.kind == SpanKind::Server);
        assert_eq!((requests.len(), statements.len()), (3, 3));
        for request in requests {
            let children = statements.iter().filter(|span| span.context.ids().2 == Some(request.context.ids().1));
            assert_eq!(children.count(), 1, "{}", request.name);
        }
        assert!(TraceContext::current().is_none());
    }

    #[test]
    fn spans_that_are_dropped_or_panic_are_recorded_as_cancelled() {
        let trace = collected();
        let mut dropped = Span::start(trace.child(), SpanKind::Server, "dropped");
        drop(dropped.scope(std::future::pending::<()>()));
        drop(dropped);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut span = Span::start(trace.child(), SpanKind::Server, "panicked");
            smol::block_on(span.scope(async { panic!("this panic belongs to the test") }))
        }));
        assert!(panicked.is_err() && TraceContext::current().is_none());
        Span::start(trace.child(), SpanKind::Client, "refused").fail("unavailable");
        let errors: Vec<_> = ended(trace).into_iter().map(|span| (span.name, span.error.unwrap())).collect();
        let expected = [("dropped", CANCELLED), ("panicked", CANCELLED), ("refused", "unavailable")];
        assert_eq!(errors, expected.map(|(name, error)| (name.into(), error.into())));
    }

    #[test]
    fn a_trace_that_is_not_sampled_is_not_recorded() {
        let trace = collected();
        let unwanted = format!("00-{}-{}-00", trace.trace_id(), trace.span_id());
        let mut span = Span::start(TraceContext::continue_from(Some(&unwanted)), SpanKind::Server, "unwanted");
        smol::block_on(span.scope(async {
            assert!(!Span::child(SpanKind::Client, "statement").is_recorded());
            Span::with_current(|_| panic!("there is nothing to change"));
        }));
        span.end();
        assert_eq!(ended(trace), []);
    }
}
