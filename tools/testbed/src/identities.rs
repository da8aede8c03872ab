//! Identities and TLS for a system of a test, as `just up --secure` has them: an authority, a certificate for each program, users of
//! the broker, roles of the databases, and a token for clients. The issuer is a file with its key.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    Error,
    broker::SecureListener,
    certificates::{Authority, Identity, Validity},
    http::Access,
    postgres::{Cluster, TlsListener, tls_url},
    roles, service_settings,
    tokens::{self, SigningKey},
};

/// The names of this machine.
const HERE: [&str; 2] = ["localhost", "127.0.0.1"];
/// `iss` of the token.
const ISSUER: &str = "https://issuer.example";
/// The services, each of which is an audience.
const SERVICES: [&str; 3] = ["patient-service", "billing-service", "analytics-service"];
/// The services with a database, and its name.
const DATABASES: [(&str, &str); 2] = [("patient-service", "patients"), ("billing-service", "billing")];
const SCOPES: &str = "patients:read patients:write patients:erase billing:read billing:write analytics:read";
/// Seconds for which the token is valid: longer than any run.
const TOKEN_SECONDS: u64 = 7 * 86_400;
/// The users of the broker; the first may do everything.
const USERS: [&str; 3] = ["administrator", "patient-service", "analytics-service"];
/// The superuser of PostgreSQL.
const SUPERUSER: &str = "postgres";

/// The files and secrets of a secure system.
#[derive(Clone, Debug)]
pub struct Identities {
    directory: PathBuf,
    access: Access,
    passwords: Vec<(String, String)>,
    /// The port of loopback at which clients reach PostgreSQL.
    pub postgres_port: u16,
}

impl Identities {
    /// Makes all of it in this directory.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn new(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory)?;
        let authority = Authority::new("Tests")?;
        authority.write(&directory.join("ca.pem"))?;
        let owners = DATABASES.map(|(service, _)| roles::owner(service));
        let names = SERVICES.into_iter().chain(owners.iter().map(String::as_str)).chain(["kafka", SUPERUSER]);
        for name in names {
            let names: Vec<_> = HERE.into_iter().chain([name]).collect();
            let identity = authority.issue(directory, name, &names, Validity::Now)?;
            fs::write(directory.join(format!("{name}.keystore.pem")), identity.keystore()?)?;
        }
        let key = SigningKey::es256("tests");
        fs::write(directory.join("keys.json"), tokens::jwk_set([&key]).to_string())?;
        let (now, audience) = (tokens::now(), SERVICES);
        let claims = json!({
            "iss": ISSUER, "aud": audience, "sub": "tests", "iat": now, "exp": now + TOKEN_SECONDS, "scope": SCOPES,
        });
        let access = Access::new(&directory.join("ca.pem"))?.with_token(key.token(&claims));
        let passwords = USERS.map(|user| (user.to_owned(), format!("{:016x}", fastrand::u64(..)))).to_vec();
        Ok(Self { directory: directory.to_owned(), access, passwords, postgres_port: 0 })
    }

    /// How clients reach the services, with a token that permits everything.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The listener of the broker, on which each service may do what [`permissions`](crate::permissions) says.
    pub fn broker_listener(&self) -> SecureListener {
        SecureListener {
            identity: self.identity("kafka"),
            authority: self.authority(),
            client: self.identity(SUPERUSER),
            users: self.passwords.clone(),
            authorize: true,
            session: None,
        }
    }

    /// A listener of PostgreSQL, each time at another address.
    pub fn postgres_listener(&self) -> TlsListener {
        TlsListener {
            address: TlsListener::any_address(),
            identity: self.identity(SUPERUSER),
            client_authorities: self.authority(),
        }
    }

    /// Creates the databases, each with its two roles.
    ///
    /// # Errors
    /// PostgreSQL's error.
    pub async fn create_databases(&self, cluster: &Cluster) -> Result<(), Error> {
        for (service, database) in DATABASES {
            cluster.create_database(database).await?;
            cluster.run(database, &roles::statements(database, service)).await?;
        }
        Ok(())
    }

    /// The URL of a database for a superuser.
    pub fn superuser_url(&self, database: &str) -> String {
        self.url(database, SUPERUSER)
    }

    /// The settings of a service besides those of a system without identities, whose values these replace.
    pub(crate) fn settings(&self, service: &str) -> Vec<(&'static str, String)> {
        let (identity, authority) = (self.identity(service), self.authority());
        let mut settings = vec![
            ("SERVER_TLS_CERTIFICATE", identity.certificate.display().to_string()),
            ("SERVER_TLS_KEY", identity.key.display().to_string()),
            ("AUTH", "jwt".to_owned()),
            ("AUTH_ISSUER", ISSUER.to_owned()),
            ("AUTH_AUDIENCE", service.to_owned()),
            ("AUTH_JWKS_FILE", self.directory.join("keys.json").display().to_string()),
        ];
        if let Some((_, database)) = DATABASES.iter().find(|(name, _)| *name == service) {
            settings.extend([
                ("DATABASE_URL", self.url(database, service)),
                ("DATABASE_OWNER_URL", self.url(database, &roles::owner(service))),
            ]);
        }
        if let Some((_, password)) = self.passwords.iter().find(|(user, _)| user == service) {
            let keystore = self.directory.join(format!("{service}.keystore.pem"));
            settings.extend(service_settings::of_kafka(
                service,
                password.clone(),
                "SCRAM-SHA-512",
                &authority,
                &keystore,
            ));
        }
        if service == "analytics-service" {
            settings.push(("ANALYTICS_MEMBERS_TLS_CA", authority.display().to_string()));
        }
        settings.extend(service_settings::of_grpc(service, &identity, &authority, "localhost"));
        settings
    }

    fn url(&self, database: &str, role: &str) -> String {
        let address = (Ipv4Addr::LOCALHOST, self.postgres_port);
        tls_url(address, database, &self.identity(role), &self.authority(), role)
    }

    fn authority(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    fn identity(&self, name: &str) -> Identity {
        let file = |extension: &str| self.directory.join(format!("{name}.{extension}"));
        Identity { certificate: file("crt"), key: file("key") }
    }
}
