//! Settings of the services in the environment of `up`: each is passed to the services whose `--help` lists it, both natively
//! and in containers. Settings that `up` sets itself are reported as not passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::Result;
use testbed::service::Setting;

use crate::{home, private_file, secure::AUTH_SERVICE};

/// Names and values of the settings of each service.
pub(crate) type ByService = BTreeMap<String, BTreeMap<String, String>>;

/// The endpoint to which spans, metrics and log lines are exported.
pub(crate) const COLLECTOR: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// In the data directory: the settings that were passed to the services.
const FILE: &str = "service-settings.json";

/// Settings that `up` sets itself, by their first names, each with what to set instead.
pub(crate) const FIXED: [(&str, &str); 18] = [
    ("SERVER_ADDRESS", "up listens on 127.0.0.1 alone"),
    ("SERVER_PORT", "PATIENT_PORT, BILLING_PORT and ANALYTICS_PORT choose the ports"),
    ("GRPC_SERVER_ADDRESS", "up listens on 127.0.0.1 alone"),
    ("GRPC_SERVER_PORT", "BILLING_GRPC_PORT chooses the port"),
    ("LOG_FORMAT", "just logs reads JSON"),
    ("LOG_LEVEL", "the name that counts here is LOG_LEVEL"),
    ("DATABASE_URL", "the name that counts here is DATABASE_URL"),
    ("DATABASE_OWNER_URL", "each service has a database of its own, with an owner's role in up --secure"),
    ("SPRING_DATASOURCE_USERNAME", "DATABASE_URL names the user"),
    ("SPRING_DATASOURCE_PASSWORD", "DATABASE_URL has the password"),
    ("KAFKA_BOOTSTRAP_SERVERS", "the name that counts here is KAFKA_BOOTSTRAP_SERVERS"),
    ("KAFKA_TOPIC", "the recipes know the topic patient"),
    ("KAFKA_DEAD_LETTER_TOPIC", "the recipes know the topic patient.dlq"),
    ("BILLING_SERVICE_ADDRESS", "patient-service calls the billing-service that up starts"),
    ("BILLING_SERVICE_GRPC_PORT", "BILLING_GRPC_PORT chooses the port"),
    ("STATE_FILE", "the state is with the other data"),
    ("USERS_FILE", "deploy/auth/users.json has the users, and those of up --secure are in its data directory"),
    ("SIGNING_KEY_FILE", "the key is with the other data"),
];
/// Settings of auth-service alone, which does not always run.
const OF_AUTH_SERVICE: [&str; 3] = ["TOKEN_ISSUER", "TOKEN_AUDIENCES", "TOKEN_LIFETIME"];
/// Settings with a variable of the same name that `up` reads itself.
const READ_BY_UP: [&str; 3] = ["LOG_LEVEL", "DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"];

/// The settings that are passed to services, and those that are not, with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PassedSettings {
    pub(crate) passed: ByService,
    not_passed: BTreeMap<String, String>,
}

/// Selects the settings of services among the environment variables. `fixed` are further settings that are not passed.
pub(crate) fn select(
    known: &BTreeMap<String, Vec<Setting>>,
    fixed: &[(&str, &str)],
    variable: impl Fn(&str) -> Option<String>,
) -> PassedSettings {
    let fixed: BTreeMap<_, _> = FIXED.iter().chain(fixed).copied().collect();
    let mut selected = PassedSettings::default();
    let is_set = |name: &&str| variable(name).is_some_and(|value| !value.is_empty());
    for name in OF_AUTH_SERVICE.iter().filter(|name| !known.contains_key(AUTH_SERVICE) && is_set(name)) {
        selected
            .add_not_passed(name, "auth-service does not run: up --secure, or in containers COMPOSE_PROFILES=gateway");
    }
    for (service, settings) in known {
        for Setting { names, .. } in settings {
            for name in names {
                let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
                match fixed.get(names[0].as_str()) {
                    Some(_) if *name == names[0] && READ_BY_UP.contains(&name.as_str()) => {}
                    Some(instead) => {
                        selected.not_passed.insert(name.clone(), (*instead).to_owned());
                    }
                    None => {
                        selected.passed.entry(service.clone()).or_default().insert(name.clone(), value);
                    }
                }
            }
        }
    }
    selected
}

impl PassedSettings {
    /// Adds a setting that is not passed.
    pub(crate) fn add_not_passed(&mut self, name: &str, instead: &str) {
        self.not_passed.insert(name.to_owned(), instead.to_owned());
    }

    /// Prints which settings are passed to which services. Names alone, because values may be secrets.
    pub(crate) fn report(&self) {
        let mut receivers = BTreeMap::<&str, BTreeSet<&str>>::new();
        for (service, settings) in &self.passed {
            for name in settings.keys() {
                receivers.entry(name).or_default().insert(service);
            }
        }
        for (name, services) in receivers {
            eprintln!("{name} is passed to {}", services.into_iter().collect::<Vec<_>>().join(", "));
        }
        for (name, instead) in &self.not_passed {
            eprintln!("{name} is not passed to the services: {instead}");
        }
    }
}

/// Under this name, the collector is saved that the user has set.
const CONSOLE: &str = "console";

/// Saves the settings, so that other commands start the services with the same ones; and the collector of the user.
pub(crate) fn save(passed: &ByService, collector: Option<&str>) -> Result<()> {
    let mut saved = passed.clone();
    if let Some(collector) = collector {
        saved.insert(CONSOLE.to_owned(), BTreeMap::from([(COLLECTOR.to_owned(), collector.to_owned())]));
    }
    private_file::write(&home::directory()?.join(FILE), &serde_json::to_string_pretty(&saved)?)
}

/// The environment of an `up` that changes nothing: the saved settings of all services, and the collector of the user.
pub(crate) fn as_environment() -> Result<BTreeMap<String, String>> {
    let mut saved = saved()?;
    let of_console = saved.remove(CONSOLE);
    Ok(saved.into_values().chain(of_console).flatten().collect())
}

/// The saved settings.
pub(crate) fn saved() -> Result<ByService> {
    let text = fs::read_to_string(home::directory()?.join(FILE)).unwrap_or_else(|_| "{}".to_owned());
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(names: &[&str]) -> Setting {
        Setting { names: names.iter().map(|name| (*name).to_owned()).collect(), default: None }
    }

    #[test]
    fn settings_are_passed_to_the_services_that_have_them() {
        let known = BTreeMap::from([
            ("a".to_owned(), vec![setting(&["TIMEOUT"]), setting(&["LOG_LEVEL", "LOGGING_LEVEL_ROOT"])]),
            ("b".to_owned(), vec![setting(&["TIMEOUT"]), setting(&["SERVER_PORT"]), setting(&["SHARE"])]),
        ]);
        let environment =
            ["TIMEOUT", "SERVER_PORT", "LOG_LEVEL", "LOGGING_LEVEL_ROOT", "OTHER", "SHARE"].map(|name| (name, "1"));
        let variable = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let selected = select(&known, &[("SHARE", "each has its own")], variable);
        let expected = BTreeMap::from([("TIMEOUT".to_owned(), "1".to_owned())]);
        assert_eq!(selected.passed, BTreeMap::from([("a".to_owned(), expected.clone()), ("b".to_owned(), expected)]));
        let named: Vec<_> = selected.not_passed.keys().map(String::as_str).collect();
        assert_eq!(named, ["LOGGING_LEVEL_ROOT", "SERVER_PORT", "SHARE"]);
        let lifetime = |name: &str| (name == "TOKEN_LIFETIME").then(|| "1h".to_owned());
        let named: Vec<_> = select(&known, &[], lifetime).not_passed.into_keys().collect();
        assert_eq!(named, ["TOKEN_LIFETIME"], "auth-service does not run");
        assert_eq!(
            select(&known, &[], |_| Some(String::new())),
            PassedSettings::default(),
            "an empty variable is not set"
        );
    }
}
