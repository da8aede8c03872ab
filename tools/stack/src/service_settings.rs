//! Settings of the services that `up` is given: what a service knows (its own `--help` says it) is passed on to it, in both
//! ways of running; what `up` decides itself is named as not passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use testbed::service::Setting;

use crate::{Outcome, home, private_file};

/// The settings of each service: names and values.
pub(crate) type ByService = BTreeMap<String, BTreeMap<String, String>>;

/// In the folder of the data: what the services of the system were given.
const FILE: &str = "service-settings.json";

/// Settings that `up` decides, by the first of their names, with what a user says instead.
pub(crate) const DECIDED: [(&str, &str); 15] = [
    ("SERVER_ADDRESS", "up listens on 127.0.0.1 alone"),
    ("SERVER_PORT", "PATIENT_PORT, BILLING_PORT and ANALYTICS_PORT choose the ports"),
    ("GRPC_SERVER_ADDRESS", "up listens on 127.0.0.1 alone"),
    ("GRPC_SERVER_PORT", "BILLING_GRPC_PORT chooses the port"),
    ("LOG_FORMAT", "just logs reads JSON"),
    ("LOG_LEVEL", "the name that counts here is LOG_LEVEL"),
    ("DATABASE_URL", "the name that counts here is DATABASE_URL"),
    ("SPRING_DATASOURCE_USERNAME", "DATABASE_URL names the user"),
    ("SPRING_DATASOURCE_PASSWORD", "DATABASE_URL has the password"),
    ("KAFKA_BOOTSTRAP_SERVERS", "the name that counts here is KAFKA_BOOTSTRAP_SERVERS"),
    ("KAFKA_TOPIC", "the recipes know the topic patient"),
    ("KAFKA_DEAD_LETTER_TOPIC", "the recipes know the topic patient.dlq"),
    ("BILLING_SERVICE_ADDRESS", "patient-service calls the billing-service that up starts"),
    ("BILLING_SERVICE_GRPC_PORT", "BILLING_GRPC_PORT chooses the port"),
    ("STATE_FILE", "the state is with the other data"),
];
/// Such as are set by a variable of the same name, which `up` reads itself.
const READ_BY_UP: [&str; 3] = ["LOG_LEVEL", "DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"];

/// What is passed to whom, and what is not, with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) passed: ByService,
    not_passed: BTreeMap<String, String>,
}

/// Sorts the variables of an environment. `decided` is what this way of running decides besides.
pub(crate) fn choose(
    known: &BTreeMap<String, Vec<Setting>>,
    decided: &[(&str, &str)],
    variable: impl Fn(&str) -> Option<String>,
) -> Chosen {
    let decided: BTreeMap<_, _> = DECIDED.iter().chain(decided).copied().collect();
    let mut chosen = Chosen::default();
    for (service, settings) in known {
        for Setting { names, .. } in settings {
            for name in names {
                let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
                match decided.get(names[0].as_str()) {
                    Some(_) if *name == names[0] && READ_BY_UP.contains(&name.as_str()) => {}
                    Some(instead) => {
                        chosen.not_passed.insert(name.clone(), (*instead).to_owned());
                    }
                    None => {
                        chosen.passed.entry(service.clone()).or_default().insert(name.clone(), value);
                    }
                }
            }
        }
    }
    chosen
}

impl Chosen {
    /// Adds one that is not passed.
    pub(crate) fn refuse(&mut self, name: &str, instead: &str) {
        self.not_passed.insert(name.to_owned(), instead.to_owned());
    }

    /// Says by name what becomes of the settings; values may be secrets.
    pub(crate) fn tell(&self) {
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

/// Keeps what the services are given, so that another command starts them in the same way.
pub(crate) fn keep(passed: &ByService) -> Outcome {
    private_file::write(&home::directory()?.join(FILE), &serde_json::to_string_pretty(passed)?)
}

/// What they were given last.
pub(crate) fn kept() -> Outcome<ByService> {
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
    fn what_a_service_knows_is_passed_to_it_and_the_rest_is_named() {
        let known = BTreeMap::from([
            ("a".to_owned(), vec![setting(&["PATIENCE"]), setting(&["LOG_LEVEL", "LOGGING_LEVEL_ROOT"])]),
            ("b".to_owned(), vec![setting(&["PATIENCE"]), setting(&["SERVER_PORT"]), setting(&["SHARE"])]),
        ]);
        let environment =
            ["PATIENCE", "SERVER_PORT", "LOG_LEVEL", "LOGGING_LEVEL_ROOT", "OTHER", "SHARE"].map(|name| (name, "1"));
        let variable = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let chosen = choose(&known, &[("SHARE", "each has its own")], variable);
        let patience = BTreeMap::from([("PATIENCE".to_owned(), "1".to_owned())]);
        assert_eq!(chosen.passed, BTreeMap::from([("a".to_owned(), patience.clone()), ("b".to_owned(), patience)]));
        let named: Vec<_> = chosen.not_passed.keys().map(String::as_str).collect();
        assert_eq!(named, ["LOGGING_LEVEL_ROOT", "SERVER_PORT", "SHARE"]);
        assert_eq!(choose(&known, &[], |_| Some(String::new())), Chosen::default(), "an empty one is not set");
    }
}
