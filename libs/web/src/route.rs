//! One row of the route table, and what tide calls for it.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, LazyLock},
    time::Instant,
};

use futures_lite::FutureExt as _;
use telemetry::{
    Span, SpanKind, TraceContext,
    metrics::{self, HistogramVec, IntCounter, IntCounterVec},
    span,
};
use tide::{Endpoint, Request, Response, http::Method, utils::async_trait};
use tracing::Instrument as _;

use crate::{
    Access, Edge, Preconditions, Problem,
    edge::Linked,
    in_flight::{InFlight, InFlightSlot},
    preconditions,
};

static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters("http_requests_total", "HTTP requests answered.", &["method", "route", "status"])
});
/// Rejected before routing.
pub(crate) static REJECTED: LazyLock<IntCounter> =
    LazyLock::new(|| REQUESTS.with_label_values(&["any", NO_ROUTE, "503"]));
static LATENCY: LazyLock<HistogramVec> = LazyLock::new(|| {
    metrics::latencies(
        "http_request_duration_seconds",
        "Time from the request's head to the response's head.",
        &["method", "route"],
    )
});

/// The route label of requests that match no route, because arbitrary paths would make the cardinality unbounded.
pub(crate) const NO_ROUTE: &str = "(none)";
/// What a 404 says.
pub(crate) const NOTHING: &str = "There is nothing at this path.";

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response, Problem>> + Send>>;
/// What answers a route's requests.
pub type Handler<S> = Arc<dyn Fn(Request<S>) -> ResponseFuture + Send + Sync>;

/// What rejects a request before its route is asked.
pub(crate) type Guard<S> = Arc<dyn Fn(&Request<S>) -> Result<(), Problem> + Send + Sync>;

/// What holds for every path, also for those without a route.
pub(crate) struct Everywhere<S> {
    pub(crate) guard: Option<Guard<S>>,
    /// What the 404 for `/` says.
    pub(crate) at_root: &'static str,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) edge: Option<Edge>,
}

impl<S> Default for Everywhere<S> {
    fn default() -> Self {
        Self { guard: None, at_root: NOTHING, headers: Vec::new(), edge: None }
    }
}

/// One row of the table. As a tide endpoint it wraps the handler with the span, the metrics, the limit of requests in
/// flight and the response after an error or a panic.
pub(crate) struct Route<S> {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) handler: Handler<S>,
    /// Who may use it, if anything was said about that.
    pub(crate) access: Option<Access>,
    /// The counter of requests in flight, if the row is limited; `build` sets the shared one.
    pub(crate) limit: Option<Arc<InFlight>>,
    /// Shared by all routes; it comes with `build`, too.
    pub(crate) everywhere: Arc<Everywhere<S>>,
}

impl<S> Route<S> {
    /// A row for what has no counter of requests in flight.
    pub(crate) fn unlimited(
        path: &'static str,
        handler: Handler<S>,
        access: Access,
        everywhere: &Arc<Everywhere<S>>,
    ) -> Self {
        let (access, everywhere) = (Some(access), everywhere.clone());
        Self { method: Method::Get, path, handler, access, limit: None, everywhere }
    }

    /// The span of a request, named by its route, because a path can contain anything. Probes and scrapes have no span.
    fn span(&self, trace: TraceContext, linked: Option<TraceContext>, method: Method) -> Span {
        let operation = self.limit.is_none() && self.path != NO_ROUTE;
        if operation || !span::is_collected() {
            return Span::NONE;
        }
        let mut span = Span::start(trace, SpanKind::Server, "HTTP");
        if let Some(linked) = linked {
            span.link(linked);
        }
        if self.path == NO_ROUTE {
            span.rename(|| method.to_string());
        } else {
            span.rename(|| format!("{method} {}", self.path));
            span.set("http.route", self.path);
        }
        span.set("http.request.method", method.to_string());
        span.set("url.scheme", "http");
        span
    }

    async fn handle(&self, mut request: Request<S>) -> Result<Response, Problem> {
        if let Some(guard) = &self.everywhere.guard {
            guard(&request)?;
        }
        // Before the body is read and before the request counts as in flight.
        if let Some(edge) = &self.everywhere.edge {
            edge.admit(&mut request, self.access).await?;
        }
        // Other methods evaluate them in the statement that makes the change.
        let evaluated = matches!(self.method, Method::Get | Method::Head) && self.path != NO_ROUTE;
        if !evaluated || !preconditions::are_in(&request) {
            return self.respond(request).await;
        }
        let required = Preconditions::of(&request);
        preconditions::apply(required, self.respond(request).await?)
    }

    /// Whether the handler needs the body first.
    fn reads_body(&self) -> bool {
        matches!(self.method, Method::Post | Method::Put)
    }

    async fn respond(&self, mut request: Request<S>) -> Result<Response, Problem> {
        let slot = self.limit.as_ref().map(|in_flight| Arc::new(InFlightSlot::of(in_flight)));
        if let Some(slot) = &slot {
            // A client that does not send its body must not take a place in flight.
            if self.reads_body() && request.len() != Some(0) {
                request.set_ext(slot.clone());
            } else {
                slot.take()?;
            }
        }
        let response = AssertUnwindSafe(async { (self.handler)(request).await }).catch_unwind().await;
        response.unwrap_or_else(|_| {
            // The panic hook has logged the message; the span of this line has the route.
            tracing::error!("a handler panicked");
            Err(Problem::internal())
        })
    }
}

#[async_trait]
impl<S: Clone + Send + Sync + 'static> Endpoint<S> for Route<S> {
    async fn call(&self, request: Request<S>) -> tide::Result {
        let started = Instant::now();
        let trace = crate::trace(&request);
        let method = if self.path == NO_ROUTE { "any" } else { self.method.as_ref() };
        // For a problem's `instance`.
        let path = request.url().path().to_owned();
        let linked = request.ext::<Linked>().map(|linked| linked.0);
        let mut span = self.span(trace, linked, request.method());
        let edge = self.everywhere.edge.as_ref();
        let origin = edge.and_then(|edge| edge.origin(&request));
        let lines = tracing::info_span!("request", trace_id = trace.trace_id(), method, route = self.path);
        let mut response = match span.scope(self.handle(request).instrument(lines)).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(&path, trace),
        };
        for (name, value) in &self.everywhere.headers {
            response.insert_header(*name, *value);
        }
        if let Some(edge) = edge {
            edge.share(&mut response, origin.as_deref());
            // Patient data, and problems about them, are for nobody's cache.
            if self.access != Some(Access::Open) && response.header("cache-control").is_none() {
                response.insert_header("cache-control", "no-store");
            }
        }
        LATENCY.with_label_values(&[method, self.path]).observe(started.elapsed().as_secs_f64());
        let code = u16::from(response.status());
        let status = code.to_string();
        REQUESTS.with_label_values(&[method, self.path, &status]).inc();
        span.set("http.response.status_code", i64::from(code));
        if response.status().is_server_error() {
            span.fail(status)
        } else {
            span.end()
        }
        Ok(response)
    }
}
