//! Has the services export to the console, which forwards the same bytes to the user's own collector.

use std::collections::BTreeMap;

use crate::{
    service_settings::{ByService, COLLECTOR},
    settings::Settings,
};

/// The delays of the batch processors for spans and log lines, in milliseconds: short, so that the console is up to date.
const DELAYS: [(&str, &str); 2] = [("OTEL_BSP_SCHEDULE_DELAY", "100"), ("OTEL_BLRP_SCHEDULE_DELAY", "100")];
/// The schemes of collectors that the console supports.
const SCHEMES: [&str; 2] = ["http://", "https://"];
/// The files of an https collector: the settings of the services, and those of the console.
const FILES: [(&str, &str); 3] = [
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "CONSOLE_FORWARD_OTLP_CERTIFICATE"),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "CONSOLE_FORWARD_OTLP_CLIENT_CERTIFICATE"),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "CONSOLE_FORWARD_OTLP_CLIENT_KEY"),
];
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
    if collector.as_ref().is_some_and(|url| !SCHEMES.iter().any(|scheme| url.starts_with(scheme))) {
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

/// The settings by which the console forwards to the collector of the user.
pub(crate) fn settings_of_console(user_settings: &ByService, collector: &str) -> Vec<(&'static str, String)> {
    let mut settings = vec![("CONSOLE_FORWARD_OTLP", collector.to_owned())];
    if collector.starts_with(SCHEMES[1]) {
        let file = |name: &str| user_settings.values().find_map(|settings| settings.get(name)).cloned();
        settings.extend(FILES.iter().filter_map(|(of_services, name)| Some((*name, file(of_services)?))));
    }
    settings
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

        let files = [(FILES[0].0, "/ca.pem"), (FILES[2].0, "/key.pem")];
        let mut over_tls = user_settings(&[(COLLECTOR, "https://localhost:4318"), files[0], files[1]]);
        let collector = export_to_console(&mut over_tls, &SERVICES, &settings()).unwrap();
        let expected =
            [("CONSOLE_FORWARD_OTLP", "https://localhost:4318"), (FILES[0].1, "/ca.pem"), (FILES[2].1, "/key.pem")];
        assert_eq!(settings_of_console(&over_tls, &collector), expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(settings_of_console(&over_tls, "http://localhost:4318").len(), 1);

        let wrong = user_settings(&[(COLLECTOR, "ftp://localhost:4318")]);
        let mut left = wrong.clone();
        assert_eq!(export_to_console(&mut left, &SERVICES, &settings()), None);
        assert_eq!(left, wrong, "the services report what is wrong with it");
    }
}
