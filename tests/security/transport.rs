//! Over which wire the services are called and call others.
//!
//! - `http`: TLS of HTTP, its certificates and versions;
//! - `clients`: what services fetch and send over HTTP;
//! - `members`: instances of analytics-service that ask each other;
//! - `services`: gRPC between the services, with certificates both ways;
//! - `backends`: PostgreSQL and Apache Kafka over TLS, and the whole system with nothing else;
//! - `permissions`: what each service may do on a broker with access control lists;
//! - `sessions`: brokers on which an authentication counts for a limited time.

mod backends;
mod clients;
mod http;
mod members;
mod permissions;
mod pki;
mod services;
mod sessions;
