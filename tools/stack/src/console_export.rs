//! Has the services export to the console, which forwards the same bytes to the user's own collector.

use std::collections::BTreeMap;

use crate::{
    service_settings::{ByService, COLLECTOR},
    settings::Settings,
};

/// The delays of the batch processors for spans and log lines, in milliseconds: short, so that the console is up to date.
const DELAYS: [(&str, &str); 2] = [("OTEL_BSP_SCHEDULE_DELAY", "100"), ("OTEL_BLRP_SCHEDULE_DELAY", "100")];
/// The console scrapes metrics, so they are exported for the user's collector alone.
const METRICS: (&str, &str) = ("OTEL_METRICS_EXPORTER", "none");

/// Has the services export to the console. Returns the collector that the user has set, to which the console forwards.
///
/// Other settings of the user stay. A collector that the console does not support stays with the services, which report what
/// is wrong with it.
pub(crate) fn export_to_console(
    user_settings: &mut ByService,
    services: &[&str],
    settings: &Settings,
) -> Option<String> {
    let console = settings.console_url().trim_end_matches('/').to_owned();
    // The console must not forward to itself.
    let collector = user_settings.values().find_map(|settings| settings.get(COLLECTOR));
    let collector = collector.filter(|url| url.trim_end_matches('/') != console).cloned();
    if collector.as_ref().is_some_and(|url| !url.starts_with("http://")) {
        return None;
    }
    for service in services {
        let settings_of_service: &mut BTreeMap<_, _> = user_settings.entry((*service).to_owned()).or_default();
        let defaults = DELAYS.into_iter().chain(collector.is_none().then_some(METRICS));
        for (name, value) in defaults {
            settings_of_service.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        settings_of_service.insert(COLLECTOR.to_owned(), console.clone());
    }
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: [&str; 2] = ["a", "b"];

    fn user_settings(pairs: &[(&str, &str)]) -> ByService {
        let settings: BTreeMap<_, _> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        SERVICES.map(|service| (service.to_owned(), settings.clone())).into()
    }

    fn settings() -> Settings {
        Settings::of(config::Environment::empty().with("CONSOLE_PORT", "4011")).unwrap()
    }

    #[test]
    fn services_export_to_the_console_and_the_console_to_the_collector() {
        let mut none = ByService::new();
        assert_eq!(export_to_console(&mut none, &SERVICES, &settings()), None);
        assert_eq!(none["a"][COLLECTOR], "http://127.0.0.1:4011");
        assert_eq!((none["b"]["OTEL_BSP_SCHEDULE_DELAY"].as_str(), none["b"][METRICS.0].as_str()), ("100", "none"));

        let mut own = user_settings(&[(COLLECTOR, "http://localhost:4318"), ("OTEL_BSP_SCHEDULE_DELAY", "7")]);
        let collector = export_to_console(&mut own, &SERVICES, &settings());
        assert_eq!(collector.as_deref(), Some("http://localhost:4318"));
        assert_eq!(
            (own["a"][COLLECTOR].as_str(), own["a"]["OTEL_BSP_SCHEDULE_DELAY"].as_str()),
            ("http://127.0.0.1:4011", "7")
        );
        assert!(!own["a"].contains_key(METRICS.0), "the collector gets the metrics, too");

        let mut itself = user_settings(&[(COLLECTOR, "http://127.0.0.1:4011/")]);
        assert_eq!(export_to_console(&mut itself, &SERVICES, &settings()), None, "it would forward to itself");
        assert_eq!(itself, none);

        let wrong = user_settings(&[(COLLECTOR, "https://localhost:4318")]);
        let mut left = wrong.clone();
        assert_eq!(export_to_console(&mut left, &SERVICES, &settings()), None);
        assert_eq!(left, wrong, "the services report what is wrong with it");
    }
}
