//! What `up --secure` adds: certificates, users, and the settings by which services, brokers, databases and commands use them.
//!
//! All of it is in files of the secure system's data directory, which their owner alone can read, and is kept between starts.

mod certificates;
pub(crate) mod databases;
pub(crate) mod gateway;
pub(crate) mod in_containers;
mod permissions;
mod settings;
mod users;

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use testbed::{
    broker::{Kind, SecureListener},
    certificates::Identity,
    http::{Access, Client},
    postgres::TlsListener,
};

use crate::{
    home::{self, Mode},
    install,
    settings::Settings,
    terminal::step,
};

pub(crate) use settings::Locations;
use users::CONSOLE;
pub(crate) use users::{DEVELOPER, User};

/// The issuer of tokens.
pub(crate) const AUTH_SERVICE: &str = "auth-service";

/// The secure system of this checkout.
#[derive(Clone, Debug)]
pub(crate) struct Secure {
    home: PathBuf,
}

impl Secure {
    /// The secure system, if that is the current mode.
    pub(crate) fn of_checkout() -> Result<Option<Self>> {
        match Mode::of_checkout()? {
            Mode::Open => Ok(None),
            Mode::Secure => Ok(Some(Self { home: home::directory()? })),
        }
    }

    /// Makes what is missing, and certificates that expire soon anew. Returns whether certificates are new, which the broker and
    /// PostgreSQL read at their start alone.
    ///
    /// # Errors
    /// If something was requested that has no TLS, or Apache Kafka cannot be had.
    pub(crate) async fn prepare(&self, settings: &Settings) -> Result<bool> {
        self.check_servers(settings)?;
        install::one_broker(Kind::Kafka).await.map_err(|reason| {
            anyhow!(
                "up --secure needs Apache Kafka, because Nisshi has neither TLS nor SASL, and it cannot be installed: {reason}\n\
                 Nothing was started. Without identities and TLS, the system runs on Nisshi: just up"
            )
        })?;
        self.make_files().await
    }

    /// # Errors
    /// If a server was requested that is not ours, or a broker that has no TLS.
    fn check_servers(&self, settings: &Settings) -> Result<()> {
        for (is_set, name) in
            [(settings.database_url.is_some(), "DATABASE_URL"), (settings.kafka.is_some(), "KAFKA_BOOTSTRAP_SERVERS")]
        {
            if is_set {
                return Err(anyhow!(
                    "up --secure starts a PostgreSQL and an Apache Kafka of its own, with TLS. Unset {name}; docs/tls.md says how \
                     services use servers of yours."
                ));
            }
        }
        if settings.broker.is_some_and(|broker| broker.0 != Kind::Kafka) {
            return Err(anyhow!("up --secure needs Apache Kafka: Nisshi has neither TLS nor SASL. Unset BROKER."));
        }
        Ok(())
    }

    /// Makes certificates and users that are missing, and certificates that expire soon anew; returns whether any is new.
    pub(crate) async fn make_files(&self) -> Result<bool> {
        let work = async {
            let renewed = certificates::renew(&self.directory())?;
            users::make_missing(&self.home).await?;
            Ok::<_, anyhow::Error>(renewed)
        };
        step("Preparing certificates and users", "", work).await
    }

    /// The directory of the certificates.
    fn directory(&self) -> PathBuf {
        certificates::directory(&self.home)
    }

    /// The file of the authority of every certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        certificates::authority(&self.directory())
    }

    fn identity(&self, name: &str) -> Identity {
        certificates::identity(&self.directory(), name)
    }

    /// How clients reach the services as this user.
    pub(crate) fn access(&self, settings: &Settings, user: &str) -> Result<Access> {
        let User { email, password } = self.user(user)?;
        Ok(self.access_without_user()?.with_login(settings.auth_address(), &email, &password))
    }

    /// How clients reach what needs no token.
    pub(crate) fn access_without_user(&self) -> Result<Access> {
        Ok(Access::new(&self.authority())?)
    }

    /// A user of auth-service.
    pub(crate) fn user(&self, name: &str) -> Result<User> {
        users::read(&self.home, name)
    }

    /// The file with the email and the password of a user, as auth-service's login takes them.
    pub(crate) fn user_file(&self, name: &str) -> PathBuf {
        users::file(&self.home, name)
    }

    /// The listener of the broker.
    pub(crate) fn broker_listener(&self) -> Result<SecureListener> {
        Ok(SecureListener {
            identity: self.identity(certificates::BROKER),
            authority: self.authority(),
            client: self.identity(certificates::STACK),
            users: users::of_broker(&self.home)?,
            authorize: true,
            session: None,
        })
    }

    /// What commands of the stack need to connect to the broker: in containers it has PLAIN alone.
    pub(crate) fn kafka_security(&self, in_containers: bool) -> Result<kafka::Security> {
        let mut security = self.broker_listener()?.security()?;
        if let Some(sasl) = security.sasl.as_mut().filter(|_| in_containers) {
            sasl.mechanism = kafka::Mechanism::Plain;
        }
        Ok(security)
    }

    /// The listener of PostgreSQL.
    pub(crate) fn postgres_listener(&self) -> TlsListener {
        TlsListener {
            address: certificates::postgres_address(&self.home),
            identity: self.identity(certificates::POSTGRES),
            client_authorities: self.authority(),
        }
    }

    /// What a service of ours needs besides the URL of its database.
    pub(crate) fn settings_of(&self, service: &str, settings: &Settings) -> Result<Vec<(String, String)>> {
        let mut all =
            settings::of(service, &self.locations(settings), &|user| users::password_of_broker(&self.home, user))?;
        all.extend(self.owner_url(service).map(|url| ("DATABASE_OWNER_URL".to_owned(), url)));
        Ok(all)
    }

    /// The options with which curl trusts the authority and brings a token.
    pub(crate) fn curl_options(&self) -> String {
        format!(" --cacert {} -H \"authorization: Bearer $(just token)\"", quoted(&self.authority()))
    }

    /// What the console needs to reach the services, and for people to log in.
    pub(crate) fn console_settings(&self, settings: &Settings) -> [(&'static str, String); 6] {
        let operations = |port: u16| format!("127.0.0.1:{port}");
        [
            ("CONSOLE_AUTH_SERVICE", settings.auth_address()),
            ("CONSOLE_TLS_CA", self.authority().display().to_string()),
            ("CONSOLE_USER_FILE", self.user_file(CONSOLE).display().to_string()),
            ("PATIENT_SERVICE_OPERATIONS", operations(settings.patient_operations_port)),
            ("BILLING_SERVICE_OPERATIONS", operations(settings.billing_operations_port)),
            ("ANALYTICS_SERVICE_OPERATIONS", operations(settings.analytics_operations_port)),
        ]
    }

    /// The names of all those settings.
    pub(crate) fn setting_names(&self, settings: &Settings) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for service in certificates::SERVICES {
            names.extend(self.settings_of(service, settings)?.into_iter().map(|(name, _)| name));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Where services find each other and their files natively.
    fn locations(&self, settings: &Settings) -> Locations {
        Locations {
            certificates: self.directory(),
            auth_service: settings.auth_address(),
            billing_service: format!("localhost:{}", settings.billing_grpc_port),
            local_networks: "127.0.0.1".to_owned(),
            kafka_mechanism: "SCRAM-SHA-512",
            operations_ports: [
                ("patient-service", settings.patient_operations_port),
                ("billing-service", settings.billing_operations_port),
                ("analytics-service", settings.analytics_operations_port),
            ],
            users: users::services_file(&self.home),
            signing_key: self.home.join("signing-key.pk8"),
        }
    }
}

/// A client of a service at this address, in the current mode as the developer.
pub(crate) fn client(settings: &Settings, address: &str) -> Result<Client> {
    let client = Client::new(address);
    Ok(match Secure::of_checkout()? {
        None => client,
        Some(secure) => client.with_access(&secure.access(settings, DEVELOPER)?),
    })
}

/// Logs a user in and prints the token.
pub(crate) async fn print_token(settings: &Settings, user: &str) -> Result<()> {
    let secure = Secure::of_checkout()?.ok_or_else(|| anyhow!("The system has no identities: just up --secure"))?;
    println!("{}", secure.access(settings, user)?.token().await?.unwrap_or_default());
    Ok(())
}

/// Prints how tests reach a secure system, as variables, one in a line.
pub(crate) fn print_target(settings: &Settings) -> Result<()> {
    if let Some(secure) = Secure::of_checkout()? {
        println!("AUTHORITY={}", secure.authority().display());
        println!("AUTH_SERVICE={}", settings.auth_address());
        println!("USER_FILE={}", secure.user_file(DEVELOPER).display());
    }
    Ok(())
}

/// A path as a word of a shell.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
