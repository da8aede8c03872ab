//! The route table.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use hyper::HeaderMap;
use telemetry::metrics;
use tide::{Request, Response, StatusCode, http::Method};

use crate::{
    Access, Edge, Health, Problem, convert,
    health::READINESS,
    in_flight::{InFlight, overloaded},
    route::{Everywhere, Handler, NO_ROUTE, NOTHING, REJECTED, Route},
};

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
            .route(Method::Get, READINESS, boxed(readiness.clone()), false)
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
        let in_flight = Arc::new(InFlight::new(self.in_flight_limit));
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
        App { tide, in_flight, unlimited, everywhere }
    }
}

/// A built application. Unit tests call it without a server.
#[derive(Clone)]
pub struct App<S> {
    tide: tide::Server<S>,
    in_flight: Arc<InFlight>,
    /// Paths without the limit of requests in flight.
    unlimited: Arc<[&'static str]>,
    everywhere: Arc<Everywhere<S>>,
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

    /// A problem that no route has answered a request of these headers with, and what every response of this application has.
    pub(crate) fn complete(&self, problem: Problem, request: &HeaderMap) -> Problem {
        let Everywhere { headers, edge, .. } = &*self.everywhere;
        let problem = headers.iter().fold(problem, |problem, (name, value)| problem.header(name, *value));
        match edge {
            Some(edge) => edge.share_problem(problem, convert::single_value(request, "origin")),
            None => problem,
        }
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
