//! Bytes to typed messages and back. No I/O, no async.
//!
//! - [`event`]: what patient-service publishes and analytics-service reads;
//! - [`headers`]: the CloudEvents headers of a record;
//! - [`dead_letter`]: what the headers of a dead letter say;
//! - [`billing`]: the messages of the billing service.

pub mod dead_letter;
pub mod event;
pub mod headers;

#[expect(missing_docs, reason = "generated; the documentation is in protos/billing_service.proto")]
pub mod billing {
    //! The messages of `protos/billing_service.proto`.

    include!(concat!(env!("OUT_DIR"), "/_.rs"));

    /// The compiled form of the file, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/billing_service.binpb"));
}
