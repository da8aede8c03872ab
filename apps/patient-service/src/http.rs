//! The HTTP edge: maps requests to use cases of the registry, and their results to responses.

use std::sync::Arc;

use web::{Limits, Router};

use crate::{billing::Billing, registry::Registry};

mod billing;
mod body;
pub mod cursor;
mod docs;
mod openapi;
mod patients;
mod preconditions;
mod problem;
mod responses;

pub use body::PatientInput;
pub use openapi::document;

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    billing: Arc<Billing>,
    limits: Limits,
}

impl App {
    /// The registry, the client of billing, and the limits on bodies.
    pub fn new(registry: Registry, billing: Arc<Billing>, limits: Limits) -> Self {
        Self { inner: Arc::new(Inner { registry, billing, limits }) }
    }

    fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    fn billing(&self) -> &Billing {
        &self.inner.billing
    }

    fn limits(&self) -> &Limits {
        &self.inner.limits
    }
}

type Request = tide::Request<App>;

/// The route table.
pub fn routes(app: App) -> Router<App> {
    let in_flight = app.limits().in_flight;
    Router::new(app)
        .limit_in_flight(in_flight)
        .at_root(
            "This is patient-service. Patients are at /patients, the API is described at /swagger-ui/index.html, and the \
             console, which shows the whole system, is at http://127.0.0.1:4010/ unless CONSOLE_PORT chooses another port.",
        )
        .post("/patients", patients::create)
        .get("/patients", patients::list)
        .get("/patients/:id", patients::read)
        .put("/patients/:id", patients::update)
        .delete("/patients/:id", patients::delete)
        .get("/patients/:id/billing", billing::account)
        .post("/patients/:id/billing/transactions", billing::record)
        .get("/patients/:id/billing/transactions", billing::list)
        .get("/v3/api-docs", docs::document)
        .get("/swagger-ui", docs::redirect)
        .get("/swagger-ui.html", docs::redirect)
        .get("/swagger-ui/:file", docs::file)
}
