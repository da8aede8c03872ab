//! The secure system in containers: a folder of files for each container, and the settings that are merged over the compose
//! files. docker-compose.secure.yaml mounts the folders.
//!
//! The containers run as other users than `up`, and must read their files. So the files are open to all in a directory that their
//! owner alone can enter, and each container sees its own folder.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::{Map, Value as Json, json};
use testbed::roles;

use super::{CONSOLE, Secure, certificates, databases, gateway, settings::Locations, users};
use crate::settings::Settings;

/// The compose file.
pub(crate) const COMPOSE_FILE: &str = "docker-compose.secure.yaml";
/// The variable that it has for the directory of the folders.
const FILES: &str = "SECURE_FILES";
/// The profile of auth-service and the gateway.
pub(crate) const PROFILE: &str = "gateway";
/// Where a container finds its folder.
const INSIDE: &str = "/etc/tls";
/// The containers of the databases, each with the service that it is for.
const DATABASES: [(&str, &str); 2] = [("patient-db", "patient-service"), ("billing-db", "billing-service")];

/// The variables of Compose for a secure system; none for another one. `profiles`: those of the user, separated by commas.
pub(crate) fn variables(profiles: &str) -> Result<BTreeMap<String, String>> {
    let Some(secure) = Secure::of_checkout()? else { return Ok(BTreeMap::new()) };
    let profiles = profiles.split(',').filter(|profile| !profile.is_empty()).chain([PROFILE]);
    let profiles: Vec<_> = profiles.collect();
    let files = secure.container_files().display().to_string();
    Ok(BTreeMap::from([("COMPOSE_PROFILES".to_owned(), profiles.join(",")), (FILES.to_owned(), files)]))
}

impl Secure {
    /// The directory with a folder for each container.
    pub(crate) fn container_files(&self) -> PathBuf {
        self.home.join("containers")
    }

    /// Writes the folders of the containers.
    pub(crate) fn write_container_files(&self) -> Result<()> {
        let directory = self.container_files();
        DirBuilder::new().mode(0o700).recursive(true).create(&directory)?;
        let authority = self.authority();
        let write = |container: &str, files: &[(&Path, &str)]| {
            let folder = directory.join(container);
            write_folder(&folder, files)?;
            write_folder(&folder, &[(&authority, "ca.pem")])
        };
        for name in certificates::SERVICES.into_iter().chain([certificates::BROKER, certificates::GATEWAY]) {
            let identity = self.identity(name);
            let keystore = certificates::keystore(&self.directory(), name);
            let own = |extension: &str| format!("{name}.{extension}");
            let (certificate, key, together) = (own("crt"), own("key"), own("keystore.pem"));
            let mut files = vec![
                (identity.certificate.as_path(), certificate.as_str()),
                (&identity.key, &key),
                (&keystore, &together),
            ];
            let users = users::services_file(&self.home);
            if name == super::AUTH_SERVICE {
                files.push((&users, "users.json"));
            }
            let owner = roles::owner(name);
            let (certificate, key) = (format!("{owner}.crt"), format!("{owner}.key"));
            let identity = self.identity(&owner);
            if databases::of_service(name).is_some() {
                files.extend([(identity.certificate.as_path(), certificate.as_str()), (&identity.key, &key)]);
            }
            write(name, &files)?;
        }
        let configuration = directory.join(certificates::GATEWAY).join("nginx.conf");
        fs::write(&configuration, gateway::of_container(Path::new(INSIDE)))?;
        fs::set_permissions(&configuration, Permissions::from_mode(0o644))?;
        write("console", &[(&self.user_file(CONSOLE), "console.json")])?;
        let identity = self.identity(certificates::POSTGRES);
        for (container, _) in DATABASES {
            write(container, &[(&identity.certificate, "server.crt"), (&identity.key, "server.key")])?;
        }
        Ok(())
    }

    /// The settings of the containers, as a compose file without the settings that the user passes.
    pub(crate) fn container_settings(&self, settings: &Settings) -> Result<Map<String, Json>> {
        let mut services = Map::new();
        for service in certificates::SERVICES {
            let mut environment: Map<String, Json> = self
                .settings_in_container(service)?
                .into_iter()
                .map(|(name, value)| (name, Json::from(value)))
                .collect();
            if service != super::AUTH_SERVICE {
                environment.insert("OPERATIONS_ADDRESS".to_owned(), "0.0.0.0".into());
            }
            let container = DATABASES.iter().find(|(_, of)| *of == service);
            if let (Some((container, _)), Some(database)) = (container, databases::of_service(service)) {
                let url = |role: &str| {
                    format!(
                        "postgres://{role}@{container}:5432/{database}?sslmode=verify-full&sslrootcert={INSIDE}/ca.pem\
                         &sslcert={INSIDE}/{role}.crt&sslkey={INSIDE}/{role}.key"
                    )
                };
                environment.insert("DATABASE_URL".to_owned(), url(service).into());
                environment.insert("DATABASE_OWNER_URL".to_owned(), url(&roles::owner(service)).into());
            }
            services.insert(service.to_owned(), json!({ "environment": environment }));
        }
        let operations = |name: &str, port: u16| {
            (format!("{name}_SERVICE_OPERATIONS"), Json::from(format!("{}-service:{port}", name.to_lowercase())))
        };
        let mut console =
            Map::from_iter([operations("PATIENT", 4100), operations("BILLING", 4101), operations("ANALYTICS", 4102)]);
        for (name, value) in [
            ("CONSOLE_AUTH_SERVICE", "auth-service:4005".to_owned()),
            ("CONSOLE_TLS_CA", format!("{INSIDE}/ca.pem")),
            ("CONSOLE_USER_FILE", format!("{INSIDE}/console.json")),
            ("PATIENT_SERVICE_LINK", format!("https://127.0.0.1:{}", settings.patient_port)),
            ("ANALYTICS_SERVICE_LINK", format!("https://127.0.0.1:{}", settings.analytics_port)),
        ] {
            console.insert(name.to_owned(), value.into());
        }
        services.insert("console".to_owned(), json!({ "environment": console }));
        let users = users::of_broker(&self.home)?;
        let users: String = users.iter().map(|(user, password)| format!(" user_{user}=\"{password}\"")).collect();
        let jaas = format!("org.apache.kafka.common.security.plain.PlainLoginModule required{users};");
        let listeners = ["INSIDE", "OUTSIDE"].map(|listener| {
            (format!("KAFKA_LISTENER_NAME_{listener}_PLAIN_SASL_JAAS_CONFIG"), Json::from(jaas.clone()))
        });
        services.insert("kafka".to_owned(), json!({ "environment": Map::from_iter(listeners) }));
        Ok(services)
    }

    fn settings_in_container(&self, service: &str) -> Result<Vec<(String, String)>> {
        let locations = Locations {
            certificates: INSIDE.into(),
            auth_service: "auth-service:4005".to_owned(),
            billing_service: "billing-service:9001".to_owned(),
            // Those of Docker.
            local_networks: "172.16.0.0/12,192.168.0.0/16".to_owned(),
            operations_ports: [("patient-service", 4100), ("billing-service", 4101), ("analytics-service", 4102)],
            kafka_mechanism: "PLAIN",
            users: Path::new(INSIDE).join("users.json"),
            signing_key: "/var/lib/auth-service/signing-key.pk8".into(),
        };
        super::settings::of(service, &locations, &|user| users::password_of_broker(&self.home, user))
    }
}

/// Writes copies of files into a folder, by these names. A container that runs has the folder mounted and reads the files again when
/// they change: so the folder stays the same one, and each file is replaced as a whole.
fn write_folder(folder: &Path, files: &[(&Path, &str)]) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    for (from, name) in files {
        let new = folder.join(format!(".{name}.new"));
        fs::copy(from, &new)?;
        fs::set_permissions(&new, Permissions::from_mode(0o644))?;
        fs::rename(&new, folder.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use testbed::Scratch;

    use super::*;

    #[test]
    fn a_folder_that_a_running_container_has_mounted_gets_the_new_files() {
        let scratch = Scratch::new().unwrap();
        let (source, folder) = (scratch.path().join("source"), scratch.path().join("patient-service"));
        let write = |text: &str| {
            fs::write(&source, text).unwrap();
            write_folder(&folder, &[(&source, "ca.pem")]).unwrap();
            fs::metadata(&folder).unwrap().ino()
        };
        let mounted = write("before");
        assert_eq!(write("after"), mounted, "what is mounted is the folder, and not its name");
        let file = folder.join("ca.pem");
        assert_eq!(fs::read_to_string(&file).unwrap(), "after");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
