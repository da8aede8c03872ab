//! A compose file with the settings that are passed to the services, which is merged over the others.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use anyhow::{Result, anyhow};
use serde_json::{Map, Value as Json, json};
use testbed::service::parse_settings;

use super::{ANALYTICS, Docker, Layout};
use crate::{
    home, private_file,
    secure::{AUTH_SERVICE, Secure, in_containers},
    service_settings::{self, COLLECTOR},
    settings::{NATIVE_ONLY, Settings},
};

/// Our services that always run.
const SERVICES: [&str; 3] = ["patient-service", "billing-service", ANALYTICS];

/// Settings that the compose files set: the collector to the console, and the hosts to the names of the containers and those of
/// the user.
const SET_BY_COMPOSE: [&str; 2] = [COLLECTOR, "HTTP_HOSTS"];

/// The path of the file, which exists if there are such settings.
pub(super) fn path() -> Result<PathBuf> {
    Ok(home::directory()?.join("docker-compose.settings.json"))
}

impl Docker {
    /// Writes the file, or removes it if there are no such settings.
    pub(super) async fn pass_settings(&self, settings: &Settings, secure: Option<&Secure>) -> Result<()> {
        let mut known = BTreeMap::new();
        for service in SERVICES.into_iter().chain(self.has_profile(in_containers::PROFILE).then_some(AUTH_SERVICE)) {
            let help = self.query(&["run", "--rm", "--no-deps", "-T", service, "--help"]).await?;
            let settings = parse_settings(&help);
            if settings.is_empty() {
                return Err(anyhow!("{service} --help lists no settings:\n{help}"));
            }
            known.insert(service.to_owned(), settings);
        }
        let mut fixed = vec![("HTTP_TRUSTED_PROXIES", "the networks of Docker are trusted")];
        if self.layout == Layout::Scaled {
            fixed.extend([
                ("PARTITIONS", "the consumer group assigns them"),
                ("KAFKA_GROUP_INSTANCE_ID", "each analytics-service has its own"),
                ("ADVERTISED_HTTP", "each analytics-service has its own"),
            ]);
        }
        let names = secure.map(|secure| secure.setting_names(settings)).transpose()?.unwrap_or_default();
        fixed.extend(names.iter().map(|name| (name.as_str(), "up --secure decides it")));
        let mut selected = service_settings::select(&known, &fixed, |name| env::var(name).ok());
        for name in NATIVE_ONLY {
            if env::var(name).is_ok_and(|value| !value.is_empty()) {
                selected.add_not_passed(name, "in containers, the system has its own; it applies with --native");
            }
        }
        selected.report();
        for settings in selected.passed.values_mut() {
            settings.retain(|name, _| !SET_BY_COMPOSE.contains(&name.as_str()));
        }
        selected.passed.retain(|_, settings| !settings.is_empty());
        let collector = env::var(COLLECTOR).ok().filter(|url| !url.is_empty());
        service_settings::save(&selected.passed, collector.as_deref())?;
        let file = path()?;
        let own = secure.map(|secure| secure.container_settings(settings)).transpose()?.unwrap_or_default();
        if selected.passed.is_empty() && own.is_empty() {
            let _ = fs::remove_file(file);
            return Ok(());
        }
        private_file::write(&file, &overlay(&selected.passed, self.layout, own).to_string())
    }
}

/// A compose file with settings of the services. JSON is YAML; `$$` is a dollar sign in Compose.
fn overlay(passed: &service_settings::ByService, layout: Layout, own: Map<String, Json>) -> Json {
    let mut services = own;
    for (service, settings) in passed {
        let environment: Map<_, _> =
            settings.iter().map(|(name, value)| (name.clone(), value.replace('$', "$$").into())).collect();
        let environment = json!({ "environment": environment });
        if service == ANALYTICS {
            for other in &layout.analytics_services()[1..] {
                services.insert((*other).to_owned(), environment.clone());
            }
        }
        match services.get_mut(service).and_then(|own| own["environment"].as_object_mut()) {
            Some(own) => own.extend(environment["environment"].as_object().cloned().unwrap_or_default()),
            None => drop(services.insert(service.clone(), environment)),
        }
    }
    json!({ "services": services })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_merged_over_the_compose_files() {
        let passed = BTreeMap::from([(ANALYTICS.to_owned(), BTreeMap::from([("A".to_owned(), "$1".to_owned())]))]);
        let given = json!({"environment": {"A": "$$1"}});
        assert_eq!(overlay(&passed, Layout::Single, Map::new()), json!({"services": {"analytics-service": given}}));
        let all = json!({"services": {
            "analytics-service": given, "analytics-service-2": given, "analytics-service-3": given
        }});
        assert_eq!(overlay(&passed, Layout::Scaled, Map::new()), all);
    }
}
