//! Checks the rules of ARCHITECTURE.md.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value as Json;

mod circles;
mod failures;
mod invariants;
mod metrics;
mod migrations;
mod vocabulary;

/// The messages, the client and the server that tonic generates for billing-service, and nothing else.
const CONTRACT: &str = "billing-api";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every folder of `apps` is a service.
fn services() -> Vec<String> {
    let folders = fs::read_dir(root().join("apps")).unwrap();
    let mut services: Vec<_> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    services.sort();
    services
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The members of the workspace: the directory and the dependencies of each, without dev-dependencies.
fn members() -> BTreeMap<String, (PathBuf, BTreeSet<String>)> {
    let metadata: Json =
        serde_json::from_str(&cargo(&["metadata", "--locked", "--no-deps", "--format-version", "1"])).unwrap();
    let text = |json: &Json| json.as_str().unwrap().to_owned();
    let member = |package: &Json| {
        let directory = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned();
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let dependencies =
            dependencies.filter(|dependency| dependency["kind"] != "dev").map(|dependency| text(&dependency["name"]));
        (text(&package["name"]), (directory, dependencies.collect()))
    };
    metadata["packages"].as_array().unwrap().iter().map(member).collect()
}

/// The toolchain file, the Dockerfile's image and, without the patch, Cargo.toml.
#[test]
fn the_version_of_rust_is_the_same_everywhere() {
    let between = |file: &str, before: &str, after: &str| {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("{file} has no {before}"));
        rest.split_once(after).unwrap().0.to_owned()
    };
    let toolchain = between("rust-toolchain.toml", "channel = \"", "\"");
    assert_eq!(between("Dockerfile", "/library/rust:", "-"), toolchain);
    let minimum = between("Cargo.toml", "rust-version = \"", "\"");
    assert_eq!(toolchain.rsplit_once('.').map(|(minor, _)| minor), Some(&*minimum));
}

/// Otherwise `LOG_LEVEL` does not apply to what a library logs, and its lines below WARN are lost.
#[test]
fn the_log_level_applies_to_every_library_that_logs() {
    let settings = fs::read_to_string(root().join("libs/telemetry/src/log.rs")).unwrap();
    let (_, list) = settings.split_once("const OWN_CRATES").unwrap();
    let (list, _) = list.split_once(';').map(|(_, list)| list.split_once(';').unwrap()).unwrap();
    let listed: BTreeSet<_> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let logs = |library: &Path| {
        sources(&library.join("src")).iter().any(|file| fs::read_to_string(file).unwrap().contains("tracing::"))
    };
    let libraries = fs::read_dir(root().join("libs")).unwrap().map(|entry| entry.unwrap().path());
    let logging: BTreeSet<_> = libraries
        .filter(|library| logs(library))
        .map(|library| library.file_name().unwrap().to_str().unwrap().replace('-', "_"))
        .collect();
    assert_eq!(listed, logging);
}

/// They do not depend on services either. Tools may use the libraries of services, and tests everything.
#[test]
fn apps_and_libraries_never_depend_on_tools_or_tests() {
    let members = members();
    let is_below = |name: &String, folders: &[&str]| {
        let directory = members.get(name).map(|(directory, _)| directory);
        directory.is_some_and(|directory| folders.iter().any(|folder| directory.starts_with(root().join(folder))))
    };
    for (name, (_, dependencies)) in &members {
        let forbidden: &[&str] = match name {
            name if is_below(name, &["apps", "libs"]) => &["apps", "tools", "tests"],
            name if is_below(name, &["tools"]) => &["tests"],
            name => {
                assert!(is_below(name, &["tests"]), "{name} is in none of apps, libs, tools and tests");
                continue;
            }
        };
        let wrong: Vec<_> = dependencies.iter().filter(|name| is_below(name, forbidden)).collect();
        assert!(wrong.is_empty(), "{name} depends on {wrong:?}");
    }
    assert!(services().iter().all(|service| members.contains_key(service)), "a folder of apps is no service");
}

#[test]
fn tokio_is_a_dependency_of_two_libraries_alone() {
    for (name, (_, dependencies)) in members() {
        // The baselines of the benchmarks are a program on which nothing depends.
        let baselines = ["tokio", "tonic"];
        for bridged in ["tokio", "async-compat", "tonic", "tonic-health", "tonic-reflection", "rskafka"] {
            if dependencies.contains(bridged) {
                let allowed = match name.as_str() {
                    "grpc" | "kafka" => true,
                    // Code that tonic generates names tonic; it runs inside libs/grpc.
                    CONTRACT => bridged == "tonic",
                    "baselines" => baselines.contains(&bridged),
                    _ => false,
                };
                assert!(allowed, "{name} depends on {bridged}");
            }
        }
        assert!(!dependencies.contains("baselines"), "{name} depends on the baselines");
    }
}

#[test]
fn kafka_protocol_is_a_dependency_of_one_library_alone() {
    let members = members();
    let users = members.iter().filter(|(_, (_, dependencies))| dependencies.contains("kafka-protocol"));
    assert_eq!(users.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["kafka"]);
}

#[test]
fn services_contain_no_test_tools() {
    for service in services() {
        let tree = cargo(&["tree", "--locked", "-p", &service, "-e", "normal", "--prefix", "none", "-f", "{p} {f}"]);
        for line in tree.lines() {
            let name = line.split(' ').next().unwrap();
            assert!(!["testbed", "async-h1"].contains(&name), "{service} contains {name}");
            assert!(!(name.starts_with("sqlx") && line.contains("_rt-tokio")), "{service}: {line}");
        }
    }
}

/// tokio's runtime, reactor and timers reach a service only through libs/grpc and libs/kafka.
#[test]
fn tokios_runtime_comes_from_two_libraries_alone() {
    for service in services() {
        let tree =
            cargo(&["tree", "--locked", "-p", &service, "-e", "normal,features", "-i", "tokio", "--prefix", "depth"]);
        let users = users_of(&tree);
        for feature in ["rt", "net", "time"] {
            let mut waiting = vec![format!("tokio feature \"{feature}\"")];
            let mut visited = BTreeSet::new();
            let mut through = BTreeSet::new();
            while let Some(node) = waiting.pop() {
                // A member of the workspace has its path in parentheses after its version.
                if node.contains(root().to_str().unwrap()) {
                    through.insert(node.split(' ').next().unwrap().to_owned());
                } else if visited.insert(node.clone()) {
                    waiting.extend(users.get(&node).into_iter().flatten().cloned());
                }
            }
            // A service without gRPC and Kafka has none of it.
            let bridged = members()[&service].1.iter().any(|name| ["grpc", "kafka"].contains(&name.as_str()));
            assert_eq!(!through.is_empty(), bridged, "{service}: {feature}; has the output of cargo tree changed?");
            let allowed = ["grpc", "kafka", CONTRACT].map(str::to_owned).into();
            assert!(through.is_subset(&allowed), "{service}: tokio's {feature} comes through {through:?}");
        }
    }
}

/// The users of each package, from an inverted `cargo tree` with depths as prefixes, which prints each subtree once.
fn users_of(tree: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut users = BTreeMap::<String, BTreeSet<String>>::new();
    let mut path: Vec<String> = Vec::new();
    for line in tree.lines() {
        let digits = line.find(|c: char| !c.is_ascii_digit()).unwrap();
        let depth: usize = line[..digits].parse().unwrap();
        let node = line[digits..].trim_end_matches(" (*)").to_owned();
        path.truncate(depth);
        if let Some(used) = path.last() {
            users.entry(used.clone()).or_default().insert(node.clone());
        }
        path.push(node);
    }
    users
}

/// The modules of a service that may contain SQL, with their submodules.
const STORES: [&str; 4] = ["billing_tasks", "outbox", "state", "store"];

/// Queries are only where readers expect them.
#[test]
fn sql_is_in_stores_alone() {
    let mut count = 0;
    for service in services() {
        let source = root().join("apps").join(&service).join("src");
        for file in sources(&source) {
            let text = fs::read_to_string(&file).unwrap();
            if ["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM "].iter().any(|word| text.contains(word)) {
                count += 1;
                let path = file.strip_prefix(&source).unwrap().with_extension("");
                let module = path.iter().next().unwrap().to_str().unwrap();
                assert!(STORES.contains(&module), "{} has SQL and is in none of {STORES:?}", file.display());
            }
        }
    }
    assert!(count > 10, "too few files with SQL were found");
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            found.push(path);
        }
    }
    found
}
