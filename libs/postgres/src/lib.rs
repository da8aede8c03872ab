//! PostgreSQL for services.
//!
//! [`Database::run`] lends a connection for one piece of work within one deadline. Work that fails, is late or is
//! cancelled costs its connection and never more: the place in the pool is free again at once. sqlx's own pool asks the
//! server for a sign of life after every use and can lose a place for ever when a connection dies silently
//! (sqlx#4349), which is why sqlx gives the connections here and this library keeps them.
//!
//! [`Batcher`] has requests that come at the same time done by one statement.
//!
//! What it does not do: TLS, replicas, notifications.

mod batcher;
mod database;
mod error;
mod pool;
mod settings;
mod statement;

pub use batcher::{Batcher, Statement};
pub use database::{Database, MigrationError};
pub use error::Error;
pub use settings::{Settings, Url};
pub use sqlx::{Acquire, PgConnection, Row, migrate::Migrator, postgres::PgRow};
pub use statement::query;
