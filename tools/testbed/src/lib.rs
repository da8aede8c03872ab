//! Real PostgreSQL, real brokers and our own processes, started and stopped by program.
//!
//! Tests run on what production runs on; `tools/stack` runs the whole system natively with the same pieces. Nothing here
//! is part of a service.
//!
//! - [`postgres`]: finds PostgreSQL's binaries and runs a cluster, unprivileged; [`failover`]: a primary with a standby;
//! - [`broker`]: Apache Kafka on the JVM, or Nisshi; [`pair`]: two nodes of the former;
//! - [`service`]: our services' binaries; [`system`]: all of them together;
//! - [`Process`]: one child process: its log, signals to it, its end;
//! - [`Scratch`]: a directory that goes away together with every process started in it, however the test ends;
//!   [`command`] and [`mark`]: the same for other processes;
//! - [`audit`]: whether anything was lost; [`writers`]: the load under which that is asked;
//! - [`proxy`]: connections that fail; [`clock`]: a clock that steps; [`sql`]: a look behind a service;
//! - [`http`]: an HTTP client with a deadline for every call; [`http2`]: frames by hand;
//! - [`cache`]: where downloaded parts are kept.

pub mod audit;
pub mod broker;
pub mod cache;
pub mod clock;
pub mod failover;
mod guard;
pub mod http;
pub mod http2;
pub mod pair;
pub mod pgbouncer;
pub mod ports;
pub mod postgres;
mod postgres_package;
mod process;
pub mod proxy;
mod scratch;
pub mod service;
mod shared;
pub mod sql;
pub mod system;
mod user;
pub mod writers;

pub use guard::{command, leave_running, mark};
pub use process::{Ended, Process, Signal, StartError};
pub use scratch::Scratch;
pub use shared::{broker as shared_broker, database as shared_database};
