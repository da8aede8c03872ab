use std::{
    collections::BTreeMap,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_lite::FutureExt as _;
use telemetry::{
    Outage, Span, SpanKind, TraceContext,
    metrics::{self, HistogramVec, IntCounter, IntCounterVec, IntGauge},
    span,
};
use tide::{Endpoint, Request, Response, StatusCode, http::Method, utils::async_trait};
use tracing::Instrument as _;

use crate::{Access, Edge, Health, Preconditions, Problem, edge::Linked, preconditions};

static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters("http_requests_total", "HTTP requests answered.", &["method", "route", "status"])
});
/// Rejected before routing.
static REJECTED: LazyLock<IntCounter> = LazyLock::new(|| REQUESTS.with_label_values(&["any", NO_ROUTE, "503"]));
static LATENCY: LazyLock<HistogramVec> = LazyLock::new(|| {
    metrics::latencies(
        "http_request_duration_seconds",
        "Time from the request's head to the response's head.",
        &["method", "route"],
    )
});
static IN_FLIGHT: LazyLock<IntGauge> = LazyLock::new(|| {
    metrics::gauge("http_requests_in_flight", "HTTP requests being handled, without those for health and metrics.")
});

/// The route label of requests that match no route, because arbitrary paths would make the cardinality unbounded.
const NO_ROUTE: &str = "(none)";
/// What a 404 says.
const NOTHING: &str = "There is nothing at this path.";
/// `Retry-After` of an overloaded service.
const OVERLOAD_RETRY_AFTER: Duration = Duration::from_secs(1);

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response, Problem>> + Send>>;
/// What answers a route's requests.
pub type Handler<S> = Arc<dyn Fn(Request<S>) -> ResponseFuture + Send + Sync>;

/// A route table.
///
/// Handlers are `async fn(Request<S>) -> Result<Response, E>` with an `E` that becomes a [`Problem`]; that conversion
/// is the one place where a service's errors become HTTP responses.
///
/// ```
/// use tide::{Request, Response, StatusCode};
/// use web::{Problem, Router, json};
///
/// async fn hello(request: Request<&'static str>) -> Result<Response, Problem> {
///     Ok(json(StatusCode::Ok, request.state()))
/// }
///
/// let app = Router::new("world").get("/hello", hello).build();
/// ```
pub struct Router<S> {
    state: S,
    routes: BTreeMap<&'static str, Vec<Route<S>>>,
    /// Where the rows of the last call are: the path, and the first of them.
    last: (&'static str, usize),
    in_flight_limit: usize,
    everywhere: Everywhere<S>,
}

/// What rejects a request before its route is asked.
type Guard<S> = Arc<dyn Fn(&Request<S>) -> Result<(), Problem> + Send + Sync>;

/// What holds for every path, also for those without a route.
struct Everywhere<S> {
    guard: Option<Guard<S>>,
    /// What the 404 for `/` says.
    at_root: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    edge: Option<Edge>,
}

impl<S> Default for Everywhere<S> {
    fn default() -> Self {
        Self { guard: None, at_root: NOTHING, headers: Vec::new(), edge: None }
    }
}

impl<S: Clone + Send + Sync + 'static> Router<S> {
    /// A table without routes. Every handler gets a clone of `state`.
    pub fn new(state: S) -> Self {
        Self {
            state,
            routes: BTreeMap::new(),
            last: ("", 0),
            in_flight_limit: usize::MAX,
            everywhere: Everywhere::default(),
        }
    }

    /// Lets through only what the edge does. To be called before [`operations`](Self::operations).
    #[must_use]
    pub fn edge(mut self, edge: Edge) -> Self {
        self.everywhere.edge = Some(edge);
        self
    }

    /// Says who may use the route that was added last.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        let (path, first) = self.last;
        for route in self.routes.get_mut(path).into_iter().flat_map(|routes| &mut routes[first..]) {
            route.access = Some(access);
        }
        self
    }

    /// Lets those use the route that was added last whose token grants `scope`.
    #[must_use]
    pub fn requires(self, scope: auth::Scope) -> Self {
        self.access(Access::Scope(scope))
    }

    /// Lets everybody use the route that was added last.
    #[must_use]
    pub fn open(self) -> Self {
        self.access(Access::Open)
    }

    /// Asks `guard` about every request, also one without a route, before anything is done for it.
    #[must_use]
    pub fn guard(mut self, guard: impl Fn(&Request<S>) -> Result<(), Problem> + Send + Sync + 'static) -> Self {
        self.everywhere.guard = Some(Arc::new(guard));
        self
    }

    /// Has the 404 for `/` say where everything is. Whoever opens a service in a browser begins there.
    #[must_use]
    pub fn at_root(mut self, detail: &'static str) -> Self {
        self.everywhere.at_root = detail;
        self
    }

    /// Adds a header to every response, also to problems.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.everywhere.headers.push((name, value));
        self
    }

    /// Answers 503 with `Retry-After` to requests above `limit`, except those for health and metrics.
    #[must_use]
    pub fn limit_in_flight(self, limit: usize) -> Self {
        Self { in_flight_limit: limit, ..self }
    }

    /// GET, and HEAD with it.
    #[must_use]
    pub fn get<F, R, E>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request<S>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<Problem>,
    {
        self.route(Method::Get, path, boxed(handler), true)
    }

    /// POST. The request counts as in flight once [`read_body`](crate::read_body) or [`read_json`](crate::read_json)
    /// has its body.
    #[must_use]
    pub fn post<F, R, E>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request<S>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<Problem>,
    {
        self.route(Method::Post, path, boxed(handler), true)
    }

    /// PUT, which counts as in flight like POST.
    #[must_use]
    pub fn put<F, R, E>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request<S>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<Problem>,
    {
        self.route(Method::Put, path, boxed(handler), true)
    }

    /// DELETE.
    #[must_use]
    pub fn delete<F, R, E>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request<S>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<Problem>,
    {
        self.route(Method::Delete, path, boxed(handler), true)
    }

    /// What every service serves: liveness, readiness and metrics, also when it is overloaded. With `AUTH=jwt` it says
    /// whether the service is ready and nothing more, because nobody needs a token for it: the rest is on
    /// [another port](operations).
    #[must_use]
    pub fn operations(self, health: Health) -> Self {
        let is_brief = self.everywhere.edge.as_ref().is_some_and(Edge::is_on);
        let readiness = move |_| {
            let health = health.clone();
            async move { Ok::<_, Problem>(health.readiness(is_brief).await) }
        };
        let router = self
            .route(Method::Get, "/actuator/health/liveness", boxed(liveness), false)
            .open()
            .route(Method::Get, "/actuator/health/readiness", boxed(readiness.clone()), false)
            .open()
            .route(Method::Get, "/actuator/health", boxed(readiness), false)
            .open();
        if is_brief {
            return router;
        }
        router
            .route(Method::Get, "/metrics", boxed(metrics_page), false)
            .open()
            // The path of Spring Boot, which scrapers of the original services use.
            .route(Method::Get, "/actuator/prometheus", boxed(metrics_page), false)
            .open()
    }

    /// The methods and paths of the table, for a test that compares it with a document.
    pub fn table(&self) -> Vec<(Method, &'static str)> {
        self.access_table().into_iter().map(|(method, path, _)| (method, path)).collect()
    }

    /// The same with who may use each, for a test that nothing is open by mistake.
    pub fn access_table(&self) -> Vec<(Method, &'static str, Option<Access>)> {
        let routes = self.routes.values().flatten().filter(|route| route.method != Method::Head);
        routes.map(|route| (route.method, route.path, route.access)).collect()
    }

    fn route(mut self, method: Method, path: &'static str, handler: Handler<S>, limited: bool) -> Self {
        let routes = self.routes.entry(path).or_default();
        self.last = (path, routes.len());
        let mut add = |method| {
            let limit = limited.then(Arc::default);
            let (handler, everywhere) = (handler.clone(), Arc::default());
            routes.push(Route { method, path, handler, access: None, limit, everywhere });
        };
        add(method);
        if method == Method::Get {
            add(Method::Head);
        }
        self
    }

    /// The application that a [`Server`](crate::Server) serves.
    ///
    /// # Panics
    /// If there is an edge and a route of which nothing is said who may use it, which is a bug in the program.
    pub fn build(self) -> App<S> {
        if self.everywhere.edge.is_some() {
            let undeclared = self.routes.values().flatten().find(|route| route.access.is_none());
            assert!(undeclared.is_none(), "nothing is said who may use {:?}", undeclared.map(|route| route.path));
        }
        let mut tide = tide::with_state(self.state);
        let everywhere = Arc::new(self.everywhere);
        let in_flight = Arc::new(InFlight { limit: self.in_flight_limit, ..InFlight::default() });
        let is_unlimited = |routes: &&Vec<Route<S>>| routes.iter().all(|route| route.limit.is_none());
        let unlimited = self.routes.iter().filter(|(_, routes)| is_unlimited(routes)).map(|(path, _)| *path).collect();
        for (path, routes) in self.routes {
            let mut methods: Vec<&str> = routes.iter().map(|route| route.method.as_ref()).collect();
            methods.push(Method::Options.as_ref());
            let allow = methods.join(", ");
            // A path with protected routes alone does not tell strangers its methods.
            let is_open = routes.iter().any(|route| route.access == Some(Access::Open));
            let access = if is_open { Access::Open } else { Access::Identified };
            for mut route in routes {
                if let Some(limit) = &mut route.limit {
                    *limit = in_flight.clone();
                }
                route.everywhere = everywhere.clone();
                tide.at(path).method(route.method, route);
            }
            let handler = boxed(move |request| method_not_allowed(request, allow.clone()));
            tide.at(path).all(Route::unlimited(NO_ROUTE, handler, access, &everywhere));
        }
        for (path, access) in [("", Access::Open), ("*", Access::Identified)] {
            let detail = if path.is_empty() { everywhere.at_root } else { NOTHING };
            let not_found = boxed(move |_| async move { Err::<Response, _>(Problem::not_found(detail)) });
            tide.at(path).all(Route::unlimited(NO_ROUTE, not_found, access, &everywhere));
        }
        App { tide, in_flight, unlimited }
    }
}

/// A built application. Unit tests call it without a server.
#[derive(Clone)]
pub struct App<S> {
    tide: tide::Server<S>,
    in_flight: Arc<InFlight>,
    /// Paths without the limit of requests in flight.
    unlimited: Arc<[&'static str]>,
}

impl<S: Clone + Send + Sync + 'static> App<S> {
    /// The response to a request.
    pub async fn respond(&self, request: tide::http::Request) -> tide::http::Response {
        self.tide.respond(request).await.unwrap_or_else(|error| {
            // No endpoint returns an error; it comes from tide itself.
            tracing::error!(%error, "tide could not respond");
            tide::http::Response::new(StatusCode::InternalServerError)
        })
    }

    /// 503 for a request that cannot be handled now: too many are in flight, or there is no memory for it.
    ///
    /// The routes check the limit exactly. This check comes before any work for the request, because a service under a
    /// multiple of its capacity has no time even to reject requests the long way.
    pub(crate) fn overload_problem(&self, path: &str, has_room: bool) -> Option<Problem> {
        if has_room && !self.in_flight.is_full() || self.unlimited.contains(&path) {
            return None;
        }
        REJECTED.inc();
        Some(if has_room { self.in_flight.reject() } else { overloaded() })
    }
}

/// The requests being handled, and how many may be.
#[derive(Default)]
struct InFlight {
    count: AtomicUsize,
    limit: usize,
    overload: Outage,
}

impl InFlight {
    fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= self.limit
    }

    fn enter(self: &Arc<Self>) -> Result<InFlightGuard, Problem> {
        let is_free = self.count.fetch_add(1, Ordering::Relaxed) < self.limit;
        // It is decremented on drop in either case.
        let entered = InFlightGuard { in_flight: self.clone(), _gauge: metrics::track(&IN_FLIGHT) };
        if is_free { Ok(entered) } else { Err(self.reject()) }
    }

    fn reject(&self) -> Problem {
        if self.overload.failed("full") {
            tracing::warn!(limit = self.limit, "too many requests in flight; more are rejected");
        }
        overloaded()
    }
}

/// 503 for a request that there is no room for.
pub(crate) fn overloaded() -> Problem {
    Problem::unavailable("The service is at its limit.", OVERLOAD_RETRY_AFTER)
}

/// A request that counts as in flight.
struct InFlightGuard {
    in_flight: Arc<InFlight>,
    _gauge: metrics::GaugeGuard,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let InFlight { count, limit, overload } = &*self.in_flight;
        let left = count.fetch_sub(1, Ordering::Relaxed) - 1;
        // At half of the limit, because at the limit itself an overload would begin and end many times a second.
        if left <= limit / 2
            && let Some(lasted) = overload.recovered()
        {
            tracing::info!(lasted_ms = lasted.as_millis() as u64, "requests are accepted again");
        }
    }
}

/// Counts a request as in flight from the start of its handling: at once if it has no body, else when
/// [`read_body`](crate::read_body) has read it. It is released when the last clone is dropped.
pub(crate) struct InFlightSlot {
    in_flight: Arc<InFlight>,
    entered: Mutex<Option<InFlightGuard>>,
}

impl InFlightSlot {
    fn of(in_flight: &Arc<InFlight>) -> Self {
        Self { in_flight: in_flight.clone(), entered: Mutex::default() }
    }

    /// Counts the request, once.
    ///
    /// # Errors
    /// 503 above the limit.
    pub(crate) fn take(&self) -> Result<(), Problem> {
        let mut entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
        if entered.is_none() {
            *entered = Some(self.in_flight.enter()?);
        }
        Ok(())
    }
}

/// One row of the table. As a tide endpoint it wraps the handler with the span, the metrics, the limit of requests in
/// flight and the response after an error or a panic.
struct Route<S> {
    method: Method,
    path: &'static str,
    handler: Handler<S>,
    /// Who may use it, if anything was said about that.
    access: Option<Access>,
    /// The counter of requests in flight, if the row is limited; `build` sets the shared one.
    limit: Option<Arc<InFlight>>,
    /// Shared by all routes; it comes with `build`, too.
    everywhere: Arc<Everywhere<S>>,
}

impl<S> Route<S> {
    fn unlimited(path: &'static str, handler: Handler<S>, access: Access, everywhere: &Arc<Everywhere<S>>) -> Self {
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

fn boxed<S, F, R, E>(handler: F) -> Handler<S>
where
    F: Fn(Request<S>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Response, E>> + Send + 'static,
    E: Into<Problem>,
{
    Arc::new(move |request| {
        let response = handler(request);
        Box::pin(async { response.await.map_err(Into::into) })
    })
}

async fn liveness<S>(_: Request<S>) -> Result<Response, Problem> {
    Ok(crate::json(StatusCode::Ok, &serde_json::json!({ "status": "UP" })))
}

/// The application of the operations port: health with its details, and metrics.
pub fn operations(health: Health) -> App<()> {
    Router::new(()).operations(health).build()
}

/// The metrics of the process as Prometheus text.
///
/// # Errors
/// None.
pub async fn metrics_page<S>(_: Request<S>) -> Result<Response, Problem> {
    Ok(crate::text(metrics::CONTENT_TYPE, metrics::render()))
}

async fn method_not_allowed<S>(request: Request<S>, allow: String) -> Result<Response, Problem> {
    if request.method() == Method::Options {
        let mut response = crate::no_content();
        response.insert_header("allow", allow);
        return Ok(response);
    }
    Err(Problem::new(StatusCode::MethodNotAllowed, "This path does not answer this method.").header("allow", allow))
}
