//! Who may call which route, and from where.

use std::net::{IpAddr, Ipv4Addr};

use auth::{Authenticator, Caller, Mode, Rejection, Scope};
use tide::{Request, Response, StatusCode, http::Method};

use crate::{Hosts, Origins, Problem, Settings};

/// `Retry-After` while no token can be verified.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(2);
/// What scripts of [`Origins`] may send.
const CORS_REQUEST_HEADERS: &str =
    "authorization, content-type, idempotency-key, if-match, if-none-match, traceparent, tracestate, baggage";
/// What they may read besides the headers that the Fetch standard allows always.
const CORS_RESPONSE_HEADERS: &str =
    "etag, link, location, missing-partitions, retry-after, server-timing, traceparent, www-authenticate";
/// Seconds for which a browser keeps the response to a preflight.
const CORS_MAX_AGE: &str = "600";

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a token.
    Open,
    /// Everybody with a valid token.
    Identified,
    /// Those whose token grants the scope.
    Scope(Scope),
}

/// What a request has to fulfil before its route is asked: with `AUTH=jwt` a token with the route's scope, with `AUTH=off`
/// a `Host` that is this service.
#[derive(Clone, Debug)]
pub struct Edge {
    authenticator: Authenticator,
    /// With `AUTH=off`.
    hosts: Option<Hosts>,
    origins: Origins,
}

impl Edge {
    /// The edge that the settings describe. `authenticator` is that of the same settings.
    pub fn new(settings: &Settings, authenticator: Authenticator) -> Self {
        if settings.auth.mode == (Mode::Off { on_network: true }) {
            tracing::warn!(
                "AUTH is off on an address that others can reach: whoever reaches the port may do everything"
            );
        }
        let hosts = (!authenticator.is_on()).then(|| settings.hosts.clone());
        Self { authenticator, hosts, origins: settings.origins.clone() }
    }

    /// Whether callers need a token.
    pub(crate) fn is_on(&self) -> bool {
        self.authenticator.is_on()
    }

    /// Lets a request through, with its [`Caller`].
    ///
    /// # Errors
    /// 421 for a foreign `Host`; 401 or 503 without a valid token, 403 without the scope.
    pub(crate) async fn admit<S>(&self, request: &mut Request<S>, access: Option<Access>) -> Result<(), Problem> {
        if let Some(hosts) = &self.hosts {
            return check_host(request, hosts);
        }
        if access == Some(Access::Open) || self.is_preflight(request) {
            return Ok(());
        }
        let values = request.header("authorization").into_iter().flatten().map(|value| value.as_str());
        let caller = self.authenticator.caller(values).await.map_err(|rejection| rejected(&rejection))?;
        match access {
            Some(Access::Open | Access::Identified) => {}
            Some(Access::Scope(scope)) => {
                self.authenticator.authorize(&caller, scope).map_err(|rejection| rejected(&rejection))?;
            }
            // `Router::build` rejects such a route.
            None => return Err(Problem::new(StatusCode::Forbidden, "This path is open to nobody.")),
        }
        request.set_ext(caller);
        Ok(())
    }

    /// Whether a browser asks on behalf of one of the origins what their scripts may send. It sends no token with that.
    fn is_preflight<S>(&self, request: &Request<S>) -> bool {
        request.method() == Method::Options
            && request.header("access-control-request-method").is_some()
            && self.origin(request).is_some()
    }

    /// The request's origin, if its scripts may call.
    pub(crate) fn origin<S>(&self, request: &Request<S>) -> Option<String> {
        let origin = request.header("origin")?.last().as_str();
        self.allows(origin).then(|| origin.to_owned())
    }

    fn allows(&self, origin: &str) -> bool {
        self.origins.0.iter().any(|one| one == origin)
    }

    /// What lets the scripts of `origin` read a response, and tells caches that it depends on the origin.
    fn sharing<'a>(&self, origin: Option<&'a str>) -> impl Iterator<Item = (&'static str, &'a str)> + use<'a> {
        let vary = (!self.origins.0.is_empty()).then_some(("vary", "origin"));
        let shared = origin.map(|origin| {
            [("access-control-allow-origin", origin), ("access-control-expose-headers", CORS_RESPONSE_HEADERS)]
        });
        vary.into_iter().chain(shared.into_iter().flatten())
    }

    /// A problem that no route has answered with, as the scripts of its `Origin` may read it, and for nobody's cache.
    pub(crate) fn share_problem(&self, problem: Problem, origin: Option<&str>) -> Problem {
        let headers = self.sharing(origin.filter(|origin| self.allows(origin)));
        headers
            .chain([("cache-control", "no-store")])
            .fold(problem, |problem, (name, value)| problem.header(name, value))
    }

    /// Lets the scripts of `origin` read the response.
    pub(crate) fn share(&self, response: &mut Response, origin: Option<&str>) {
        for (name, value) in self.sharing(origin) {
            response.append_header(name, value);
        }
        if origin.is_none() {
            return;
        }
        // Only the response to OPTIONS has it, besides 405, which is none to a preflight.
        if let Some(methods) = response.header("allow").map(|allow| allow.as_str().to_owned()) {
            response.insert_header("access-control-allow-methods", methods);
            response.insert_header("access-control-allow-headers", CORS_REQUEST_HEADERS);
            response.insert_header("access-control-max-age", CORS_MAX_AGE);
        }
    }
}

/// The address that a request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);

/// The address that a request comes from: that of the connection or, if it is that of a trusted proxy, what the proxy says.
/// It is unspecified in a unit test.
pub fn client_address<S>(request: &Request<S>) -> IpAddr {
    request.ext::<ClientAddress>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.0)
}

/// The caller's trace, if the request does not continue it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linked(pub(crate) telemetry::TraceContext);

/// Who makes a request: [`Caller::Unidentified`] with `AUTH=off`, and on a route that is open.
pub fn caller<S>(request: &Request<S>) -> Caller {
    request.ext::<Caller>().cloned().unwrap_or_default()
}

/// The response to a request whose caller was rejected.
pub fn rejected(rejection: &Rejection) -> Problem {
    let detail = rejection.to_string();
    let problem = match rejection {
        Rejection::Missing => Problem::new(StatusCode::Unauthorized, detail).kind("missing-token"),
        Rejection::Invalid(_) => Problem::new(StatusCode::Unauthorized, detail).kind("invalid-token"),
        Rejection::Forbidden(_) => Problem::new(StatusCode::Forbidden, detail).kind("insufficient-scope"),
        Rejection::NoKeys => Problem::unavailable(detail, RETRY_AFTER).kind("keys-unavailable"),
    };
    match rejection.challenge() {
        Some(challenge) => problem.header("www-authenticate", challenge),
        None => problem,
    }
}

/// Keeps out pages of other sites that reach the service through a browser, under a name of theirs that leads here (DNS
/// rebinding). An address needs no name, so such a page cannot send one.
fn check_host<S>(request: &Request<S>, hosts: &Hosts) -> Result<(), Problem> {
    let host = request.header("host").map(|values| values.last().as_str()).unwrap_or_default();
    if hosts.contain(host) {
        return Ok(());
    }
    let detail = "The Host of the request is not a name of this service.";
    Err(Problem::new(StatusCode::MisdirectedRequest, detail).kind("foreign-host"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "nothing is said who may use")]
    fn a_route_of_which_nothing_is_said_is_not_served() {
        async fn handler(_: Request<()>) -> Result<Response, Problem> {
            Ok(crate::no_content())
        }
        let settings = Settings::read(&mut config::Reader::new(config::Environment::empty()), "0");
        let router = crate::Router::new(()).edge(Edge::new(&settings, Authenticator::off()));
        router.get("/open", handler).open().get("/forgotten", handler).build();
    }
}
