//! The settings by which a service has identities and TLS, natively and in containers.

use std::path::PathBuf;

use anyhow::Result;
use testbed::service_settings::{of_grpc, of_kafka};

use super::{AUTH_SERVICE, certificates};

/// Where services find each other and their files.
#[derive(Clone, Debug)]
pub(crate) struct Locations {
    /// The directory of the certificates.
    pub(crate) certificates: PathBuf,
    /// Host and port of auth-service, as its tokens name it.
    pub(crate) auth_service: String,
    /// Host and port of billing-service's gRPC.
    pub(crate) billing_service: String,
    /// The networks of the console, whose traces are continued, and of the gateway, which says for whom it calls and under which
    /// prefix.
    pub(crate) local_networks: String,
    /// The mechanism of SASL to Kafka.
    pub(crate) kafka_mechanism: &'static str,
    /// The operations ports of the services.
    pub(crate) operations_ports: [(&'static str, u16); 3],
    /// Files of auth-service.
    pub(crate) users: PathBuf,
    pub(crate) signing_key: PathBuf,
}

/// The settings of a service. `password` is that of a user of the broker, if there is such a user.
pub(super) fn of(
    service: &str,
    locations: &Locations,
    password: &dyn Fn(&str) -> Result<Option<String>>,
) -> Result<Vec<(String, String)>> {
    let Locations { certificates, auth_service, .. } = locations;
    let path = |path: PathBuf| path.display().to_string();
    let identity = certificates::identity(certificates, service);
    let authority = certificates::authority(certificates);
    let issuer = format!("https://{auth_service}");
    let mut settings = vec![
        ("SERVER_TLS_CERTIFICATE", path(identity.certificate.clone())),
        ("SERVER_TLS_KEY", path(identity.key.clone())),
        ("HTTP_TRUSTED_PROXIES", locations.local_networks.clone()),
    ];
    if service == AUTH_SERVICE {
        settings.extend([
            ("TOKEN_ISSUER", issuer),
            ("USERS_FILE", path(locations.users.clone())),
            ("SIGNING_KEY_FILE", path(locations.signing_key.clone())),
        ]);
        return Ok(owned(settings));
    }
    settings.extend([
        ("AUTH", "jwt".to_owned()),
        ("AUTH_JWKS_URL", format!("{issuer}/.well-known/jwks.json")),
        ("AUTH_JWKS_TLS_CA", path(authority.clone())),
        ("AUTH_ISSUER", issuer),
        ("AUTH_AUDIENCE", service.to_owned()),
        // The console begins the journeys of what it writes, and has what it reads not recorded.
        ("HTTP_TRACE_CALLERS", locations.local_networks.clone()),
    ]);
    let operations = locations.operations_ports.iter().find(|(name, _)| *name == service);
    settings.extend(operations.map(|(_, port)| ("OPERATIONS_PORT", port.to_string())));
    if let Some(password) = password(service)? {
        let keystore = certificates::keystore(certificates, service);
        settings.extend(of_kafka(service, password, locations.kafka_mechanism, &authority, &keystore));
    }
    settings.extend(of_grpc(service, &identity, &authority, &locations.billing_service));
    Ok(owned(settings))
}

fn owned(settings: Vec<(&str, String)>) -> Vec<(String, String)> {
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
