//! A cluster's listener for clients over TLS.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::PORT;
use crate::{Error, certificates::Identity, user::User};

/// A TCP listener that accepts clients over TLS alone, with a certificate whose common name is their user.
#[derive(Clone, Debug)]
pub struct TlsListener {
    /// The address, which has to be one of loopback. The port is PostgreSQL's own, so each cluster has another address.
    pub address: Ipv4Addr,
    /// The server's certificate and key.
    pub identity: Identity,
    /// A file with the authorities of clients.
    pub client_authorities: PathBuf,
}

impl TlsListener {
    /// An address of loopback that no other listener has, most probably.
    pub fn any_address() -> Ipv4Addr {
        Ipv4Addr::new(127, fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255))
    }

    /// The URL of a database for a client, whose user is the common name of its certificate. Both sides are verified.
    pub fn url(&self, database: &str, client: &Identity, authority: &Path, user: &str) -> String {
        tls_url((self.address, PORT), database, client, authority, user)
    }
}

/// The URL of a database at this address, which verifies both sides.
pub(crate) fn tls_url(
    (address, port): (Ipv4Addr, u16),
    database: &str,
    client: &Identity,
    authority: &Path,
    user: &str,
) -> String {
    let parameter = |name: &str, path: &Path| {
        format!("&{name}={}", utf8_percent_encode(path.to_str().unwrap_or_default(), NON_ALPHANUMERIC))
    };
    let Identity { certificate, key } = client;
    let files = [("sslrootcert", authority), ("sslcert", certificate), ("sslkey", key)];
    let files: String = files.into_iter().map(|(name, path)| parameter(name, path)).collect();
    format!("postgres://{user}@{address}:{port}/{database}?sslmode=verify-full{files}")
}

/// Copies the files of a listener to where the server may read them, and has clients of TCP authenticate by certificate.
pub(super) fn write_tls_files(directory: &Path, tls: &TlsListener, user: Option<User>) -> Result<(), Error> {
    let files = [
        (&tls.identity.certificate, "server.crt"),
        (&tls.identity.key, "server.key"),
        (&tls.client_authorities, "client-ca.pem"),
    ];
    for (from, name) in files {
        let to = directory.join(name);
        // One of an earlier start belongs to the server's user.
        let _ = fs::remove_file(&to);
        fs::copy(from, &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
        if let Some(user) = user {
            chown(&to, Some(user.uid), Some(user.gid))?;
        }
    }
    let rules = "local all all trust\nlocal replication all trust\nhostssl all all 127.0.0.0/8 cert\n";
    Ok(fs::write(directory.join("data/pg_hba.conf"), rules)?)
}

/// The server's settings. The files are relative to the directory of the data.
pub(super) fn tls_settings() -> [String; 4] {
    let file = |setting: &str, name: &str| format!("{setting}=../{name}");
    [
        "ssl=on".to_owned(),
        file("ssl_cert_file", "server.crt"),
        file("ssl_key_file", "server.key"),
        file("ssl_ca_file", "client-ca.pem"),
    ]
}
