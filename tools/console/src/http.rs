//! The route table, and what serves the page itself.

use std::sync::Arc;

use serde_json::json;
use tide::{Response, StatusCode};
use web::{Problem, Router};

use crate::{Settings, assets::Assets, guard};

/// What every handler can use.
#[derive(Clone)]
pub(crate) struct App {
    inner: Arc<Inner>,
}

struct Inner {
    assets: Assets,
    settings: Settings,
}

impl App {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { inner: Arc::new(Inner { assets: Assets::new(settings.assets.clone()), settings }) }
    }
}

type Request = tide::Request<App>;

/// Where the page is; it reads from the address what it has to show.
const PAGES: [&str; 8] =
    ["/", "/journeys", "/journeys/:trace", "/patients", "/patients/:id", "/lab", "/lab/:run", "/dead-letters"];

/// The route table.
pub(crate) fn routes(app: App) -> Router<App> {
    let in_flight = app.inner.settings.http.limits.in_flight;
    let mut router = Router::new(app).limit_in_flight(in_flight).guard(guard::check);
    for (name, value) in guard::HEADERS {
        router = router.header(name, value);
    }
    for path in PAGES {
        router = router.get(path, page);
    }
    router.get("/assets/:name", asset).get("/api/info", info)
}

async fn page(request: Request) -> Result<Response, Problem> {
    request.state().inner.assets.answer("index.html", &request)
}

async fn asset(request: Request) -> Result<Response, Problem> {
    request.state().inner.assets.answer(request.param("name").unwrap_or_default(), &request)
}

async fn info(request: Request) -> Result<Response, Problem> {
    let Settings { patients_link, analytics_link, .. } = &request.state().inner.settings;
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": option_env!("GIT_REVISION"),
        "now": now(),
        "agent": false,
        "collector": null,
        "links": {
            "patients": patients_link,
            "api": format!("{patients_link}/swagger-ui/index.html"),
            "analytics": format!("{analytics_link}/analytics/summary"),
        },
    });
    Ok(web::json(StatusCode::Ok, &body))
}

fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}
