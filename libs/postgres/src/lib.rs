//! PostgreSQL for services.
//!
//! [`Database::run`] lends a connection for one piece of work within one deadline. Work that fails, is late or is
//! cancelled costs its connection and never more: the place in the pool is free again at once. sqlx's own pool asks the
//! server for a sign of life after every use and can lose a place for ever when a connection dies silently
//! (sqlx#4349), which is why sqlx gives the connections here and this library keeps them.
//!
//! What certainly was not done is done again: statements that are stale after a change of the schema, serialization
//! failures and deadlocks, connections that were closed at rest or lead to a server that takes no writes. A statement that
//! the server gave up ([`Error::Locked`], [`Error::Timeout`]) is no outage.
//!
//! [`Batcher`] has requests that come at the same time done by one statement.
//!
//! What it does not do: TLS, replicas, notifications.

mod batcher;
mod database;
mod error;
mod pool;
mod requirements;
mod settings;
mod statement;

pub use batcher::{BatchStatement, Batcher};
pub use database::{Database, MigrationError};
pub use error::Error;
pub use settings::{Settings, URL_PARAMETERS, Url};
pub use sqlx::{Acquire, PgConnection, Row, migrate::Migrator, postgres::PgRow};
pub use statement::query;
