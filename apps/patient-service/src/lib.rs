//! Patient records over HTTP.
//!
//! Data flow one way. A request: [`http`] -> [`registry`] -> [`store`], with the domain's types in [`patient`]. Events and
//! billing tasks are written in the commit of the change, by [`outbox`] and [`billing_tasks`], and processed afterwards:
//! [`relay`] publishes the events, [`reconciler`] makes the calls to billing that a request could not finish in time.
//! [`dead_letters`] is the operator's command for what Kafka or billing has rejected.

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
