//! The HTTP server, tested over sockets.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod bodies;
mod connections;
mod cors;
mod limits;
mod protocol;
mod support;
mod tls_records;
mod unread;
