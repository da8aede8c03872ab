//! Starts and stops real PostgreSQL servers, real brokers and our services, for tests and tools.
//!
//! Tests run against the servers that production runs; `tools/stack` runs the whole system natively by the same means. No
//! service depends on this crate.
//!
//! - [`postgres`]: finds PostgreSQL's binaries and runs a cluster, unprivileged; [`failover`]: a primary with a standby;
//! - [`broker`]: Apache Kafka on the JVM, or Nisshi; [`kafka_cluster`]: two nodes of the former;
//! - [`service`]: our services' binaries; [`system`]: all of them together;
//! - [`Process`]: one child process: its log, signals to it, its exit;
//! - [`Scratch`]: a temporary directory; it is removed, and every process started in it killed, however the test ends;
//!   [`command`] and [`owner_variable`]: the same for other processes;
//! - [`analytics`]: what one analytics-service has counted; [`audit`]: finds lost data; [`writers`]: clients that write meanwhile;
//! - [`certificates`]: a certificate authority, and certificates for servers and clients; [`identities`]: all that a secure
//!   system has;
//! - [`patient`]: request bodies and events of patients; [`permissions`]: what the services need on a broker;
//! - [`compose`]: which containers belong to a checkout;
//! - [`proxy`]: a TCP proxy that injects faults; [`clock`]: a clock that can be set; [`sql`]: queries on a service's database;
//!   [`roles`]: who may do what in it;
//! - [`http`]: an HTTP client with a timeout for every call; [`http2`]: HTTP/2 frame by frame;
//! - [`tokens`]: an issuer of tokens, valid and forged;
//! - [`messages`]: what our code logs in the process of a test;
//! - [`until()`]: waits for a condition;
//! - [`cache`]: the directory of downloaded and built programs.

pub mod analytics;
pub mod audit;
pub mod broker;
pub mod cache;
pub mod certificates;
pub mod clock;
pub mod compose;
mod error;
pub mod failover;
mod guard;
pub mod http;
pub mod http2;
pub mod identities;
pub mod kafka_cluster;
pub mod messages;
pub mod patient;
pub mod permissions;
pub mod pgbouncer;
pub mod ports;
pub mod postgres;
mod process;
pub mod proxy;
pub mod roles;
mod scratch;
pub mod service;
pub mod service_settings;
mod shared;
pub mod sql;
pub mod system;
pub mod tokens;
mod until;
mod user;
pub mod writers;

pub use error::Error;
pub use guard::{command, leave_running, owner_variable};
pub use process::{Exit, Process, Signal, output, resident_memory};
pub use scratch::Scratch;
pub use shared::{broker as shared_broker, database as shared_database};
pub use until::until;
pub use user::create_open_directory;
