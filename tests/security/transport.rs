//! Over which wire the services are called and call others.
//!
//! - `http`: TLS of HTTP, its certificates and versions;
//! - `clients`: what services fetch and send over HTTP;
//! - `members`: instances of analytics-service that ask each other;
//! - `services`: gRPC between the services, with certificates both ways;
//! - `backends`: PostgreSQL and Apache Kafka over TLS, and the whole system with nothing else.

mod backends;
mod clients;
mod http;
mod members;
mod pki;
mod services;
