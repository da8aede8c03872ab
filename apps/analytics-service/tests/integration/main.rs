//! The service from outside: events on a real broker in, HTTP responses out.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod batches;
mod compaction;
mod dead_letters;
mod harness;
mod ingest;
mod members;
mod merged_answers;
mod offset_loss;
mod outages;
mod partitions;
mod progress;
mod reassignment;
mod registrations;
mod streams;
