//! A web page that shows the system at work, at <http://127.0.0.1:4010/>.
//!
//! It receives what the services export (OTLP over HTTP), keeps the newest of it in bounded memory, assembles each trace
//! into the journey of a patient, scrapes health and metrics each second, and proxies reads and writes to patient-service.
//! It stores nothing on disk and no personal data.
//!
//! It depends on no service and no service on it: without it, spans are lost and nothing else.

mod address;
mod app;
mod assets;
mod canary;
mod client;
mod expectations;
mod forward;
mod generator;
mod guard;
mod http;
mod journey;
mod lab;
mod live;
mod load;
mod map;
mod otlp;
mod prometheus;
pub mod samples;
mod scrape;
mod service;
mod session;
mod settings;
mod store;
mod time;

pub use service::Service;
pub use session::Secure;
pub use settings::{Collector, Settings};
