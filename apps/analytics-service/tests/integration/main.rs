//! The service as its clients see it: events on a real broker in, HTTP out.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod batches;
mod harness;
mod ingest;
mod losses;
mod partitions;
mod shown;
mod streams;
mod trouble;
