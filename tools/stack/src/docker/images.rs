//! The images from registries: those that run as they are, and the base images of ours.

use std::{fs, time::Duration};

use anyhow::{Result, anyhow};
use testbed::Process;
use yaml_rust2::Yaml;

use crate::{home, terminal::step};

use super::command::run;

/// Time for an image to be pulled.
const PULL_TIMEOUT: Duration = Duration::from_secs(900);

/// Pulls the images that the engine does not have.
///
/// # Errors
/// If an image cannot be pulled; the error names it, and how to set a mirror.
pub(super) async fn fetch(images: &[String]) -> Result<()> {
    for image in images {
        if run("docker", &["image", "inspect", image]).await.is_ok() {
            continue;
        }
        let pull = Process::builder("docker pull", "docker", home::directory()?.join("docker.log"))
            .args(["pull", "--quiet", image])
            .run(PULL_TIMEOUT);
        step(&format!("Pulling {image}"), "", pull).await.map_err(|error| {
            anyhow!(
                "The image {image} cannot be pulled:\n{error}\n\
                 To use a mirror: DOCKER_HUB=mirror.example.org (or GCR=...) in .env"
            )
        })?;
    }
    Ok(())
}

/// The base images in the Dockerfile. `variable` returns environment variables, which can set mirrors.
pub(super) fn bases(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<String>> {
    Ok(base_images(&fs::read_to_string("Dockerfile")?, variable))
}

/// They are in arguments before the first stage: `ARG RUST_IMAGE=${DOCKER_HUB}/library/rust:1.95`.
fn base_images(dockerfile: &str, variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut known: Vec<(&str, String)> = Vec::new();
    for line in dockerfile.lines().take_while(|line| !line.starts_with("FROM ")) {
        let Some((name, default)) = line.strip_prefix("ARG ").and_then(|argument| argument.split_once('=')) else {
            continue;
        };
        let default =
            known.iter().fold(default.to_owned(), |text, (name, value)| text.replace(&format!("${{{name}}}"), value));
        known.push((name, variable(name).filter(|value| !value.is_empty()).unwrap_or(default)));
    }
    known.into_iter().filter(|(name, _)| name.ends_with("_IMAGE")).map(|(_, image)| image).collect()
}

/// The images of these services.
pub(super) fn of_services(services: &[Yaml]) -> Vec<String> {
    let mut images: Vec<_> =
        services.iter().filter_map(|service| service["image"].as_str().map(str::to_owned)).collect();
    images.sort_unstable();
    images.dedup();
    images
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::compose_config::active_services;

    #[test]
    fn base_images_are_found_in_the_dockerfile() {
        let dockerfile = "# A mirror\nARG HUB=docker.io\nARG A_IMAGE=${HUB}/library/a:1\nARG OTHER\nFROM ${A_IMAGE} AS a\nARG B_IMAGE=b\n";
        assert_eq!(base_images(dockerfile, |_| None), ["docker.io/library/a:1"]);
        let mirror = |name: &str| (name == "HUB").then(|| "mirror.example.org".to_owned());
        assert_eq!(base_images(dockerfile, mirror), ["mirror.example.org/library/a:1"]);
    }

    #[test]
    fn images_are_found_in_the_compose_file() {
        let of_config = |config, profiles| active_services(config, profiles).map(|services| of_services(&services));
        let config = "services:\n  b:\n    image: b:1\n  c:\n    build:\n      context: .\n    ports:\n    - 1:1\n  t:\n    image: t:1\n    \
                      profiles:\n    - tools\n    restart: always\n  a:\n    image: a:2\n  d:\n    image: b:1\nvolumes:\n  v: {}\n";
        assert_eq!(of_config(config, "").unwrap(), ["a:2", "b:1"]);
        assert_eq!(of_config(config, "tools").unwrap(), ["a:2", "b:1", "t:1"]);
        let otherwise =
            "name: x\nservices:\n    b: {profiles: [tools], image: \"b:1\"}\n    a:\n        image: 'a:2'\n";
        assert_eq!(of_config(otherwise, "").unwrap(), ["a:2"], "another style of the same YAML");
        assert!(of_config("not a compose file", "").is_err());
    }
}
