//! Patient records over HTTP.
//!
//! Data flow one way. A request: [`http`] -> [`registry`] -> [`store`], with the domain's types in [`patient`]. What a
//! change sets off is written in its own commit, by [`outbox`] and [`billing_tasks`], and done afterwards: [`relay`]
//! publishes the events, [`reconciler`] tells billing what the request itself could not tell it in time.

pub mod billing;
pub mod billing_tasks;
pub mod completed_tasks;
pub mod dead_letters;
mod housekeeping;
pub mod http;
pub mod outbox;
pub mod patient;
pub mod reconciler;
pub mod registry;
pub mod relay;
mod service;
mod settings;
pub mod store;

pub use service::Service;
pub use settings::Settings;
