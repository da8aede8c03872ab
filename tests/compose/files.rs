//! The compose files as Compose reads them: with variables substituted, anchors resolved, and files merged.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::{Map, Value as Json};
use yaml_rust2::{Yaml, YamlLoader};

/// The folder of the repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A file of the repository.
pub(crate) fn text(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The variables of `.env`.
pub(crate) fn variables() -> BTreeMap<String, String> {
    let text = text(".env");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The system of `docker compose up`.
pub(crate) fn single() -> Json {
    merge(load("docker-compose.yaml"), load("docker-compose.override.yaml"))
}

/// The system of `just up-scaled`.
pub(crate) fn scaled() -> Json {
    merge(load("docker-compose.yaml"), load("docker-compose.scale.yaml"))
}

/// The system of `just up --docker --secure`, without the settings that `up` merges over it.
pub(crate) fn secure() -> Json {
    merge(single(), load("docker-compose.secure.yaml"))
}

/// The services of a system, including those with profiles.
pub(crate) fn services(system: &Json) -> impl Iterator<Item = (&String, &Json)> {
    system["services"].as_object().unwrap().iter()
}

/// The strings of a list; none if it is not a list.
pub(crate) fn strings(json: &Json) -> Vec<&str> {
    json.as_array().into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

fn load(name: &str) -> Json {
    let documents =
        YamlLoader::load_from_str(&substitute(&text(name))).unwrap_or_else(|error| panic!("{name}: {error}"));
    json(&documents[0])
}

/// Substitutes variables: `${NAME:-default}` is the only form in our files.
fn substitute(text: &str) -> String {
    let variables = variables();
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (expression, behind) = after.split_once('}').unwrap();
        let (name, default) = expression.split_once(":-").unwrap_or_else(|| panic!("{expression} has no default"));
        let set = variables.get(name).filter(|value| !value.is_empty());
        result += before;
        result += set.map_or(default, String::as_str);
        rest = behind;
    }
    result + rest
}

fn json(yaml: &Yaml) -> Json {
    match yaml {
        Yaml::Hash(entries) => {
            let mut object = Map::new();
            // Keys of the mapping override merged ones.
            for (_, merged) in entries.iter().filter(|(name, _)| name.as_str() == Some("<<")) {
                object.extend(json(merged).as_object().unwrap().clone());
            }
            let own = entries.iter().filter(|(name, _)| name.as_str() != Some("<<"));
            object.extend(own.map(|(name, value)| (name.as_str().unwrap().to_owned(), json(value))));
            object.into()
        }
        Yaml::Array(items) => items.iter().map(json).collect::<Vec<_>>().into(),
        Yaml::String(text) | Yaml::Real(text) => text.clone().into(),
        Yaml::Integer(number) => (*number).into(),
        Yaml::Boolean(truth) => (*truth).into(),
        Yaml::Null => Json::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("{yaml:?}"),
    }
}

/// Merges two files by Compose's rules: mappings are merged, lists are joined, other values and command lines are replaced.
fn merge(below: Json, above: Json) -> Json {
    match (below, above) {
        (Json::Object(mut below), Json::Object(above)) => {
            for (name, value) in above {
                let value = match below.remove(&name) {
                    // By the path in the container.
                    Some(Json::Array(before)) if name == "volumes" => {
                        let mount_point = |volume: &Json| volume.as_str().unwrap().split(':').nth(1).map(str::to_owned);
                        let mount_points: Vec<_> = value.as_array().unwrap().iter().map(mount_point).collect();
                        let kept =
                            before.into_iter().filter(|volume| !mount_points.contains(&mount_point(volume))).collect();
                        merge(Json::Array(kept), value)
                    }
                    // What is executed is one thing.
                    Some(_) if ["command", "entrypoint", "test"].contains(&name.as_str()) => value,
                    Some(before) => merge(before, value),
                    None => value,
                };
                below.insert(name, value);
            }
            below.into()
        }
        (Json::Array(below), Json::Array(above)) => below.into_iter().chain(above).collect::<Vec<_>>().into(),
        (_, above) => above,
    }
}
