//! What the services export goes to the console, which shows it and passes the same bytes on to the user's own collector.

use std::collections::BTreeMap;

use crate::{service_settings::ByService, settings::Settings};

/// Where spans, metrics and log lines go.
const COLLECTOR: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// How long spans and log lines wait for others, in milliseconds: whoever looks on does not want to wait.
const DELAYS: [(&str, &str); 2] = [("OTEL_BSP_SCHEDULE_DELAY", "100"), ("OTEL_BLRP_SCHEDULE_DELAY", "100")];
/// The console reads metrics where they are shown; only a collector of the user's wants them sent.
const METRICS: (&str, &str) = ("OTEL_METRICS_EXPORTER", "none");

/// Has the services export to the console. Gives the collector that the user has set, to which the console passes it on.
///
/// What the user has set stays as it is otherwise. A collector that the console could not speak to is left to the services,
/// which say what is wrong with it.
pub(crate) fn through_the_console(passed: &mut ByService, services: &[&str], settings: &Settings) -> Option<String> {
    let collector = passed.values().find_map(|settings| settings.get(COLLECTOR)).cloned();
    if collector.as_ref().is_some_and(|url| !url.starts_with("http://")) {
        return None;
    }
    for service in services {
        let settings_of_service: &mut BTreeMap<_, _> = passed.entry((*service).to_owned()).or_default();
        let defaults = DELAYS.into_iter().chain(collector.is_none().then_some(METRICS));
        for (name, value) in defaults {
            settings_of_service.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        let console = settings.console_url().trim_end_matches('/').to_owned();
        settings_of_service.insert(COLLECTOR.to_owned(), console);
    }
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: [&str; 2] = ["a", "b"];

    fn passed(pairs: &[(&str, &str)]) -> ByService {
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
        assert_eq!(through_the_console(&mut none, &SERVICES, &settings()), None);
        assert_eq!(none["a"][COLLECTOR], "http://127.0.0.1:4011");
        assert_eq!((none["b"]["OTEL_BSP_SCHEDULE_DELAY"].as_str(), none["b"][METRICS.0].as_str()), ("100", "none"));

        let mut own = passed(&[(COLLECTOR, "http://localhost:4318"), ("OTEL_BSP_SCHEDULE_DELAY", "7")]);
        let collector = through_the_console(&mut own, &SERVICES, &settings());
        assert_eq!(collector.as_deref(), Some("http://localhost:4318"));
        assert_eq!(
            (own["a"][COLLECTOR].as_str(), own["a"]["OTEL_BSP_SCHEDULE_DELAY"].as_str()),
            ("http://127.0.0.1:4011", "7")
        );
        assert!(!own["a"].contains_key(METRICS.0), "the collector gets the metrics, too");

        let wrong = passed(&[(COLLECTOR, "https://localhost:4318")]);
        let mut left = wrong.clone();
        assert_eq!(through_the_console(&mut left, &SERVICES, &settings()), None);
        assert_eq!(left, wrong, "the services say what is wrong with it");
    }
}
