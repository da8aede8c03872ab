//! HTTP: maps requests to use cases of the registry, and their results to responses.

use std::sync::Arc;

use auth::Scope;
use web::{Edge, Limits, Router};

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

/// Lists, reads and searches patients.
const PATIENTS_READ: Scope = Scope::new("patients:read");
/// Registers and changes patients.
const PATIENTS_WRITE: Scope = Scope::new("patients:write");
/// Deletes patients.
const PATIENTS_ERASE: Scope = Scope::new("patients:erase");
/// Reads accounts and ledgers.
const BILLING_READ: Scope = Scope::new("billing:read");
/// Enters transactions.
const BILLING_WRITE: Scope = Scope::new("billing:write");

/// The route table, with who may use each route.
pub fn routes(app: App, edge: Edge) -> Router<App> {
    let in_flight = app.limits().in_flight;
    Router::new(app)
        .edge(edge)
        .limit_in_flight(in_flight)
        .at_root(
            "This is patient-service. Patients are at /patients, the API is described at /swagger-ui/index.html, and the \
             console, which shows the whole system, is at http://127.0.0.1:4010/ unless CONSOLE_PORT chooses another port.",
        )
        .post("/patients", patients::create)
        .requires(PATIENTS_WRITE)
        .get("/patients", patients::list)
        .requires(PATIENTS_READ)
        .get("/patients/:id", patients::read)
        .requires(PATIENTS_READ)
        .put("/patients/:id", patients::update)
        .requires(PATIENTS_WRITE)
        .delete("/patients/:id", patients::delete)
        .requires(PATIENTS_ERASE)
        .get("/patients/:id/billing", billing::account)
        .requires(BILLING_READ)
        .post("/patients/:id/billing/transactions", billing::record)
        .requires(BILLING_WRITE)
        .get("/patients/:id/billing/transactions", billing::list)
        .requires(BILLING_READ)
        .get("/v3/api-docs", docs::document)
        .open()
        .get("/swagger-ui", docs::redirect)
        .open()
        .get("/swagger-ui.html", docs::redirect)
        .open()
        .get("/swagger-ui/:file", docs::file)
        .open()
}
