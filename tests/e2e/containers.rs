//! `up --docker`, and the recipes after it in another shell, with a Docker engine that accepts commands and runs no container.

use std::{fs, os::unix::fs::PermissionsExt as _};

use testbed::{
    broker::{Broker, Size},
    service::binaries,
};

use crate::{
    stack::{Stack, printed},
    up::{broker, prepend_to_path},
};

/// It writes a line for each command: its arguments, and variables that Compose puts into the compose files. Services say what
/// their settings are. Containers cannot be started, so that `up` ends there.
const DOCKER: &str = r#"#!/bin/sh
echo "$* | $PATIENT_DB_PASSWORD $COMPOSE_PROFILES $HTTP_HOSTS" >> "$CALLS"
case "$*" in
    "compose version --short") echo 2.40.3 ;;
    *" config") echo "services: {}" ;;
    *" --help") eval "service=\${$(($# - 1))}"; exec "$BINARIES/$service" --help ;;
    *" up "*) echo "there are no containers here" >&2; exit 1 ;;
esac
"#;

struct System {
    stack: Stack,
}

impl System {
    fn new() -> Self {
        Self::of(Stack::new(broker(), "stack"))
    }

    fn secure() -> Self {
        Self::of(Stack::secure("stack"))
    }

    fn of(mut stack: Stack) -> Self {
        let folder = stack.scratch.path().join("bin");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("docker"), DOCKER).unwrap();
        fs::set_permissions(folder.join("docker"), fs::Permissions::from_mode(0o755)).unwrap();
        stack.environment.extend([
            ("PATH", prepend_to_path(&folder)),
            ("BINARIES", binaries().unwrap().display().to_string()),
            ("CALLS", stack.scratch.path().join("calls").display().to_string()),
        ]);
        Self { stack }
    }

    /// What `up` prints until it starts the containers.
    fn up(&self, variables: &[(&str, &str)], arguments: &[&str]) -> String {
        let output = self.stack.try_up(variables, &[&["--docker", "--no-build"], arguments].concat());
        let printed = printed(&output);
        assert!(printed.contains("there are no containers here"), "{printed}");
        printed
    }

    /// The settings that `up` merges over the compose files; null if there are none.
    fn merged(&self) -> serde_json::Value {
        let text = fs::read_to_string(self.stack.home().join("docker-compose.settings.json"));
        text.map_or(serde_json::Value::Null, |text| serde_json::from_str(&text).unwrap())
    }

    /// The last command that Compose got, with the variables.
    fn last_call(&self) -> String {
        let calls = fs::read_to_string(self.stack.scratch.path().join("calls")).unwrap();
        calls.lines().last().unwrap().to_owned()
    }
}

#[test]
fn other_recipes_give_compose_what_up_was_given_and_a_rebuild_starts_analytics_alone() {
    runtime::block_on(2, async {
        let system = System::new();
        let given = [("PATIENT_DB_PASSWORD", "other"), ("COMPOSE_PROFILES", "tools"), ("HTTP_HOSTS", "my.host")];
        // The broker is that of the containers all the same.
        let foreign = ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1");
        let up = system.up(&[&given[..], &[foreign]].concat(), &[]);
        assert!(up.contains("KAFKA_BOOTSTRAP_SERVERS is not passed"), "{up}");
        // Compose adds them to the names of the containers.
        assert!(!system.merged().to_string().contains("HTTP_HOSTS"), "{}", system.merged());
        system.stack.print(&["ps"]);
        let call = system.last_call();
        assert!(call.ends_with(" ps -a -q | other tools my.host"), "{call}");

        let directory = system.stack.scratch.path().join("broker");
        let mut kafka =
            Broker::start(broker(), &directory, system.stack.port("KAFKA_PORT"), Size::Small, "").await.unwrap();
        system.stack.scratch.guard(kafka.process()).unwrap();
        kafka::create_topic(&system.stack.kafka, "patient", 1).await.unwrap();
        let rebuild = printed(&system.stack.run(&["rebuild-analytics"]));
        assert!(rebuild.contains("there are no containers here"), "{rebuild}");
        let call = system.last_call();
        assert!(call.ends_with(" up -d --no-build --no-deps analytics-service | other tools my.host"), "{call}");
    });
}

#[test]
fn settings_of_auth_service_are_passed_to_it_where_it_runs() {
    for (profiles, arguments, expected) in [
        ("", &[][..], "TOKEN_LIFETIME is not passed to the services: auth-service does not run"),
        ("gateway", &[], "TOKEN_LIFETIME is passed to auth-service\n"),
        ("", &["--secure"], "TOKEN_LIFETIME is passed to auth-service\n"),
    ] {
        let system = if arguments.is_empty() { System::new() } else { System::secure() };
        let up = system.up(&[("TOKEN_LIFETIME", "1h"), ("COMPOSE_PROFILES", profiles)], arguments);
        assert!(up.contains(expected), "{up}");
        let merged = system.merged();
        let lifetime = &merged["services"]["auth-service"]["environment"]["TOKEN_LIFETIME"];
        assert_eq!(lifetime.as_str(), (!expected.contains(" not ")).then_some("1h"), "{merged}");
    }
}
