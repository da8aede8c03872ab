//! The settings by which services reach each other and the broker in a secure system.

use std::path::Path;

use crate::certificates::Identity;

/// The settings of a service for a broker over SASL_SSL. The broker's address is not among them.
pub fn of_kafka(
    user: &str,
    password: String,
    mechanism: &str,
    authority: &Path,
    keystore: &Path,
) -> [(&'static str, String); 6] {
    [
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL".to_owned()),
        ("KAFKA_SSL_TRUSTSTORE_LOCATION", authority.display().to_string()),
        ("KAFKA_SSL_KEYSTORE_LOCATION", keystore.display().to_string()),
        ("KAFKA_SASL_MECHANISM", mechanism.to_owned()),
        ("KAFKA_SASL_USERNAME", user.to_owned()),
        ("KAFKA_SASL_PASSWORD", password),
    ]
}

/// The settings of a service for the gRPC between patient-service and billing-service, which is at `billing`. Those of other
/// services are none.
pub fn of_grpc(service: &str, identity: &Identity, authority: &Path, billing: &str) -> Vec<(&'static str, String)> {
    let file = |path: &Path| path.display().to_string();
    let (certificate, key, authority) = (file(&identity.certificate), file(&identity.key), file(authority));
    match service {
        "billing-service" => vec![
            ("GRPC_SERVER_TLS_CERTIFICATE", certificate),
            ("GRPC_SERVER_TLS_KEY", key),
            ("GRPC_SERVER_TLS_CLIENT_CA", authority),
            ("GRPC_CLIENT_SANS", "patient-service".to_owned()),
        ],
        "patient-service" => vec![
            ("BILLING_SERVICE_ADDRESS", format!("https://{billing}")),
            ("BILLING_TLS_CA", authority),
            ("BILLING_TLS_CERTIFICATE", certificate),
            ("BILLING_TLS_KEY", key),
        ],
        _ => Vec::new(),
    }
}
