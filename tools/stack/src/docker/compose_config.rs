//! The output of `docker compose config`: all compose files together, with every variable replaced.

use anyhow::{Result, anyhow};
use yaml_rust2::{Yaml, YamlLoader};

/// The services, without those of inactive profiles, which Compose v1 prints too. `profiles`: the active ones, separated by
/// commas.
pub(super) fn active_services(config: &str, profiles: &str) -> Result<Vec<Yaml>> {
    let invalid = |error: &str| anyhow!("docker compose config prints no compose file ({error}):\n{config}");
    let documents = YamlLoader::load_from_str(config).map_err(|error| invalid(&error.to_string()))?;
    let services = documents.first().and_then(|document| document["services"].as_hash());
    let is_active = |service: &&Yaml| {
        let mut own = service["profiles"].as_vec().into_iter().flatten().filter_map(Yaml::as_str).peekable();
        own.peek().is_none() || own.any(|profile| profiles.split(',').any(|active| active == profile))
    };
    Ok(services.ok_or_else(|| invalid("it has no services"))?.values().filter(is_active).cloned().collect())
}
