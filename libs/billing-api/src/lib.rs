//! The contract between billing-service and its clients: what tonic generates from `protos/billing_service.proto`.
//!
//! The messages, [`billing_service_client`] for callers, [`billing_service_server`] for the service. What a call does and
//! which statuses it has is documented in the `.proto` file. What both sides do with it is theirs: this crate has no logic.
#![expect(missing_docs, reason = "generated; the documentation is in protos/billing_service.proto")]

tonic::include_proto!("_");

/// The name of the service, as health checks and traces have it.
pub const SERVICE: &str = "BillingService";

/// The compiled form of the file, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));
