//! A listener of Apache Kafka that authenticates clients.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::write_private;
use crate::{Error, certificates::Identity};

/// The certificate with its key, and the authority of clients, for a secure listener.
const KEYSTORE: &str = "broker.pem";
const TRUSTSTORE: &str = "clients.pem";

/// A listener of Apache Kafka with the protocol SASL_SSL, instead of PLAINTEXT: certificates both ways, and SCRAM or PLAIN.
#[derive(Clone, Debug)]
pub struct SecureListener {
    /// The broker's certificate and key, for the name `localhost`.
    pub identity: Identity,
    /// A file with the authority of clients and of the broker itself.
    pub authority: PathBuf,
    /// What the broker's own client, which waits until it is ready, shows.
    pub client: Identity,
    /// Users and passwords, without quotes. The first is the broker's own, and may do everything.
    pub users: Vec<(String, String)>,
    /// Whether the others may do only what access control lists say.
    pub authorize: bool,
    /// After which time clients have to authenticate again, or are disconnected; none is never.
    pub session: Option<Duration>,
}

impl SecureListener {
    /// What a client needs to connect as the first user, by SCRAM-SHA-256.
    ///
    /// # Errors
    /// If a file is not valid.
    pub fn security(&self) -> Result<kafka::Security, Error> {
        let Identity { certificate, key } = self.client.clone();
        let files = tls::ClientSettings { ca: Some(self.authority.clone()), identity: Some((certificate, key)) };
        let connector = tls::Connector::new("kafka", files, &[]).map_err(|error| Error::new(error.to_string()))?;
        let (username, password) = self.users.first().cloned().unwrap_or_default();
        let credentials = config::Secret::new(kafka::Credentials { username, password });
        let sasl = kafka::Sasl { mechanism: kafka::Mechanism::ScramSha256, credentials };
        Ok(kafka::Security { tls: Some(connector), sasl: Some(sasl) })
    }

    /// The files that the broker reads, in its directory.
    pub(super) fn write(&self, directory: &Path) -> Result<(), Error> {
        write_private(&directory.join(KEYSTORE), &self.identity.keystore()?)?;
        // A copy of one that others may not read could not be written over.
        let _ = fs::remove_file(directory.join(TRUSTSTORE));
        Ok(fs::copy(&self.authority, directory.join(TRUSTSTORE)).map(drop)?)
    }

    /// Lines for `server.properties`, after which the lines before do not count.
    pub(super) fn properties(&self, port: u16, controller: u16) -> String {
        let users: String = self.users.iter().map(|(user, password)| format!(" user_{user}=\"{password}\"")).collect();
        let listener = "listener.name.sasl_ssl";
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        // The controller's listener, on loopback, has no users.
        let authorizer = match self.users.first() {
            Some((user, _)) if self.authorize => format!(
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                 super.users=User:{user};User:ANONYMOUS\n"
            ),
            _ => String::new(),
        };
        let session = self.session.map(|session| format!("connections.max.reauth.ms={}\n", session.as_millis()));
        let session = session.unwrap_or_default();
        format!(
            "listeners=SASL_SSL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=SASL_SSL://localhost:{port}\n\
             listener.security.protocol.map=SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT\n\
             inter.broker.listener.name=SASL_SSL\n\
             sasl.mechanism.inter.broker.protocol=SCRAM-SHA-256\n\
             sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN\n\
             {listener}.scram-sha-256.sasl.jaas.config={scram}\n\
             {listener}.scram-sha-512.sasl.jaas.config={scram}\n\
             {listener}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required{users};\n\
             # Relative to the working directory.\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={KEYSTORE}\n\
             ssl.truststore.type=PEM\n\
             ssl.truststore.location={TRUSTSTORE}\n\
             ssl.client.auth=required\n\
             {authorizer}{session}"
        )
    }

    /// Arguments of `kafka-storage format`, which stores what SCRAM needs of the passwords.
    pub(super) fn format_arguments(&self) -> Vec<String> {
        let users = self.users.iter().flat_map(|(user, password)| {
            ["SCRAM-SHA-256", "SCRAM-SHA-512"].map(|mechanism| format!("{mechanism}=[name={user},password={password}]"))
        });
        users.flat_map(|user| ["--add-scram".to_owned(), user]).collect()
    }
}
