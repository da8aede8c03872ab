//! The route table, and what serves the page itself.

mod journeys;
mod lab;
mod map;
mod patients;
mod programs;
mod session;

use serde_json::json;
use std::time::SystemTime;
use tide::{Response, StatusCode};
use web::{Problem, Router};

use crate::{app::App, guard, time::iso};

type Request = tide::Request<App>;

/// The paths of the page, whose script shows the view that the path names.
const PAGES: [&str; 8] =
    ["/", "/journeys", "/journeys/:trace", "/patients", "/patients/:id", "/lab", "/lab/:run", "/dead-letters"];

/// The route table.
pub(crate) fn routes(app: App) -> Router<App> {
    let in_flight = app.settings().http.limits.in_flight;
    let mut router = Router::new(app).limit_in_flight(in_flight).guard(check);
    for (name, value) in guard::HEADERS {
        router = router.header(name, value);
    }
    for path in PAGES {
        router = router.get(path, page);
    }
    router
        .get("/login", session::page)
        .post("/api/session", session::log_in)
        .delete("/api/session", session::log_out)
        .get("/assets/:name", asset)
        .get("/api/info", info)
        .get("/api/stream", journeys::stream)
        .get("/api/map", map::map)
        .get("/api/map/history", map::history)
        .get("/api/parts/:id", map::part)
        .get("/api/journeys", journeys::list)
        .get("/api/journeys/:trace", journeys::read)
        .get("/api/logs", journeys::logs)
        .get("/api/patients", patients::list)
        .post("/api/patients", patients::create)
        .get("/api/patients/:id", patients::read)
        .put("/api/patients/:id", patients::update)
        .delete("/api/patients/:id", patients::delete)
        .post("/api/patients/:id/transactions", patients::create_transaction)
        .get("/api/sample", patients::sample)
        .get("/api/currencies", patients::currencies)
        .get("/api/dead-letters", patients::dead_letters)
        .post("/api/dead-letters/resend", lab::resend)
        .get("/api/lab", lab::read)
        .post("/api/lab/runs", lab::begin)
        .get("/api/lab/runs/:run", lab::run)
        .delete("/api/lab/runs/:run", lab::heal)
        .post("/api/lab/load", lab::begin_load)
        .delete("/api/lab/load", lab::end_load)
        .post("/agent/work", lab::work)
        .post("/v1/traces", programs::traces)
        .post("/v1/logs", programs::logs)
        .post("/v1/metrics", programs::metrics)
}

/// Lets a request through that comes from where it may, and in a secure system from somebody who has logged in.
fn check(request: &Request) -> Result<(), Problem> {
    guard::check(request)?;
    request.state().identity().map_or(Ok(()), |identity| identity.check(request))
}

async fn page(request: Request) -> Result<Response, Problem> {
    request.state().assets().response("index.html", &request)
}

async fn asset(request: Request) -> Result<Response, Problem> {
    request.state().assets().response(request.param("name").unwrap_or_default(), &request)
}

async fn info(request: Request) -> Result<Response, Problem> {
    let app = App::of(&request);
    let settings = app.settings();
    if app.identity().is_some() && app.session().is_none() {
        // Enough for the page to ask for a login.
        return Ok(web::json(StatusCode::Ok, &json!({ "login": true, "user": null, "now": iso(SystemTime::now()) })));
    }
    let body = json!({
        "login": app.identity().is_some(),
        "user": app.session().map(|session| session.email.clone()),
        "version": env!("CARGO_PKG_VERSION"),
        "revision": option_env!("GIT_REVISION"),
        "now": iso(SystemTime::now()),
        "agent": app.lab().has_agent(),
        "lab": true,
        "collector": settings.collector.as_ref().map(|collector| collector.url.to_string()),
        "store": app.store().size(),
        "links": {
            "patients": settings.patients_link,
            "api": format!("{}/swagger-ui/index.html", settings.patients_link),
            "analytics": format!("{}/analytics/summary", settings.analytics_link),
        },
    });
    Ok(web::json(StatusCode::Ok, &body))
}
