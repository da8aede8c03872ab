//! PostgreSQL for services.
//!
//! [`Database::run`] runs one piece of work on a pooled connection within one deadline. Work that fails, times out or
//! is cancelled costs at most its connection; its permit in the pool is free again at once. sqlx's own pool pings the
//! server after every use and can lose a permit for ever when a connection dies silently (sqlx#4349). So sqlx opens the
//! connections, and this library pools them.
//!
//! Work is retried if its first attempt certainly had no effect, or if executing it twice has the same effect as once (reads and
//! idempotent work): after stale prepared statements, serialization failures, deadlocks, violations of an index of `REINDEX
//! CONCURRENTLY`, and on connections that were closed or lead to a read-only server. A lock timeout ([`Error::Locked`]) or a
//! statement timeout ([`Error::Timeout`]) is no outage.
//!
//! [`Batcher`] executes concurrent requests of one kind with one statement.
//!
//! Not supported: routing reads to replicas, LISTEN/NOTIFY.

mod batcher;
mod database;
mod error;
mod pool;
mod requirements;
mod runtime_role;
mod settings;
mod statement;

pub use batcher::{BatchStatement, Batcher};
pub use database::{Database, MigrationError};
pub use error::Error;
pub use requirements::Requirement;
pub use settings::{Settings, URL_PARAMETERS, Url};
pub use sqlx::{Acquire, PgConnection, Row, migrate::Migrator, postgres::PgRow};
pub use statement::query;
