//! `up` with settings, with special characters in paths, with existing databases, and with tools that fail.

use std::{
    env, fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use testbed::{
    Scratch,
    broker::Kind,
    postgres::{Cluster, Durability},
    service::{self, binaries},
    sql, until,
};

use crate::{
    stack::{Stack, printed},
    support::register,
};

/// Special characters of shells, URLs, lists and properties, in more bytes than the path of a socket may have.
const ODD_HOME: &str =
    "päth with 'quotes', a + and a %2f; \"all\" = in & one $HOME # but no colon ......................";

/// The installed broker that starts fastest.
pub(crate) fn broker() -> Kind {
    if Kind::Nisshi.is_installed() { Kind::Nisshi } else { Kind::Kafka }
}

#[test]
fn settings_reach_the_services_whatever_the_data_directory_is_called() {
    runtime::block_on(2, async {
        let stack = Stack::new(broker(), ODD_HOME);
        let settings_given = [("BILLING_DEADLINE", "3s"), ("HTTP_MAX_IN_FLIGHT", "77"), ("SERVER_PORT", "1")];
        let up = stack.up_with(&settings_given, &[]);
        assert!(up.contains("BILLING_DEADLINE is passed to patient-service\n"), "{up}");
        assert!(up.contains("HTTP_MAX_IN_FLIGHT is passed to analytics-service, patient-service\n"), "{up}");
        assert!(up.contains("SERVER_PORT is not passed to the services: PATIENT_PORT"), "{up}");
        let variable = |component: &str, name: &str| stack.variable_of(component, name);
        assert_eq!(variable("patient-service", "BILLING_DEADLINE").as_deref(), Some("3s"));
        assert_eq!(variable("analytics-service", "HTTP_MAX_IN_FLIGHT").as_deref(), Some("77"));
        assert_eq!(variable("analytics-service", "BILLING_DEADLINE"), None);
        assert_ne!(variable("patient-service", "SERVER_PORT").as_deref(), Some("1"));

        register(&stack.client("PATIENT_PORT"), "Jane Doe").await;
        let analytics = stack.client("ANALYTICS_PORT");
        let counted = async || analytics.get("/analytics/summary").await.unwrap().json()["activePatients"] == 1;
        until("the patient is counted", counted).await;
        // Other commands use the saved settings of `up`, not their own environment.
        let ps = stack.print(&["ps"]);
        assert_eq!(ps.lines().filter(|line| line.contains(" ready ")).count(), 4, "{ps}");
        let console = stack.client("CONSOLE_PORT");
        assert!(up.contains(&format!("See it at work: {}/", console.base())), "{up}");
        let page = console.get("/").await.unwrap();
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        let seen = async || {
            let journeys = console.get("/api/journeys").await.unwrap().json();
            journeys["journeys"].as_array().is_some_and(|all| all.iter().any(|one| one["state"] == "delivered"))
        };
        until("the console shows the journey", seen).await;
        assert!(stack.print(&["demo"]).contains("applied by analytics"));

        let pids = || {
            ["patient-service", "billing-service", "analytics-service"]
                .map(|component| stack.process(component).unwrap().pid())
        };
        let before = pids();
        stack.up_with(&settings_given, &[]);
        assert_eq!(pids(), before, "nothing has changed");
        let up = stack.up_with(&[("BILLING_DEADLINE", "4s"), ("HTTP_MAX_IN_FLIGHT", "77")], &[]);
        assert!(up.contains("patient-service is started again: BILLING_DEADLINE changed"), "{up}");
        let after = pids();
        assert!(after[0] != before[0] && after[1..] == before[1..], "{before:?} {after:?}");
        assert_eq!(variable("patient-service", "BILLING_DEADLINE").as_deref(), Some("4s"));
        // A setting that is no longer given is no longer in force.
        let up = stack.up_with(&[("HTTP_MAX_IN_FLIGHT", "77")], &[]);
        assert!(up.contains("patient-service is started again: BILLING_DEADLINE changed"), "{up}");
        assert_eq!(variable("patient-service", "BILLING_DEADLINE"), None);
        stack.print(&["rebuild-analytics"]);
        stack.guard();
        assert_eq!(variable("analytics-service", "HTTP_MAX_IN_FLIGHT").as_deref(), Some("77"), "as up has started it");

        let cluster = Cluster::running(&stack.home().join("postgres"), Durability::Disk).unwrap();
        let sockets = cluster.socket_directory().to_owned();
        assert!(!sockets.starts_with(stack.home()), "the path of its socket would be too long");
        stack.print(&["reset", "--yes"]);
        assert!(!stack.home().exists() && !sockets.exists());
    });
}

#[test]
fn an_invalid_setting_is_reported_by_the_message_of_the_service() {
    let stack = Stack::new(broker(), "stack");
    let up = stack.try_up(&[("BILLING_DEADLINE", "soon")], &[]);
    assert!(!up.status.success(), "{}", printed(&up));
    assert!(printed(&up).contains("BILLING_DEADLINE: expected a time span"), "{}", printed(&up));
}

#[test]
fn every_setting_that_up_fixes_exists_in_a_service() {
    let known: Vec<String> = ["patient-service", "billing-service", "analytics-service", "auth-service"]
        .iter()
        .flat_map(|name| service::settings(name).unwrap())
        .map(|setting| setting.names[0].clone())
        .collect();
    let source = include_str!("../../tools/stack/src/service_settings.rs");
    let constant = |name: &str| source.split(&format!("const {name}")).nth(1).unwrap().split("];").next().unwrap();
    let decided = constant("FIXED").lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next());
    let decided: Vec<_> = decided.chain(constant("OF_AUTH_SERVICE").split('"').skip(1).step_by(2)).collect();
    assert!(decided.len() > 10, "{decided:?}");
    for name in decided {
        assert!(known.iter().any(|known| known == name), "no service knows {name}");
    }
}

#[test]
fn foreign_databases_are_used_only_after_confirmation() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        cluster.create_database("patients").await.unwrap();
        sql::execute(&cluster.url("patients"), "CREATE TABLE precious (id int)").await.unwrap();
        let tables_of = async |database: &str| {
            let query =
                "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
            let name = |row: &sqlx::postgres::PgRow| sqlx::Row::try_get::<String, _>(row, 0);
            sql::rows(&cluster.url(database), query, name).await.unwrap()
        };
        let tables = async || tables_of("patients").await;
        let stack = Stack::new(broker(), "stack");
        // The services let the parameter win over the path.
        cluster.create_database("shop").await.unwrap();
        // What a server has by default whose initdb was told --locale=C.
        for statement in [
            "ALTER DATABASE template1 IS_TEMPLATE false",
            "DROP DATABASE template1",
            "CREATE DATABASE template1 IS_TEMPLATE true TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'",
        ] {
            cluster.run("postgres", statement).await.unwrap();
        }
        let url = format!("{}&dbname=shop", cluster.url("postgres"));
        let settings_given = [("DATABASE_URL", url.as_str())];
        let rejected = stack.try_up(&settings_given, &[]);
        assert!(!rejected.status.success(), "{}", printed(&rejected));
        assert!(
            printed(&rejected).contains("there is already: patients, not made by just up"),
            "{}",
            printed(&rejected)
        );
        assert!(printed(&rejected).contains("just up --yes"), "{}", printed(&rejected));
        assert_eq!(tables().await, ["precious"], "nothing was changed");
        assert!(stack.process("broker/broker").is_none(), "and nothing was started");

        stack.up_with(&settings_given, &["--yes"]);
        assert!(tables().await.contains(&"outbox".to_owned()));
        assert!(tables_of("billing").await.contains(&"balances".to_owned()));
        assert_eq!(tables_of("shop").await, [""; 0], "another database of the server");
        let equal = "SELECT 1 / (lower('ÄÖЖ') = 'äöж')::int";
        cluster.run("billing", equal).await.expect("names are compared in every script");
        // Databases that were confirmed, and those that `up` has created, need no confirmation.
        stack.up_with(&settings_given, &[]);
        assert!(stack.print(&["dead-letters"]).contains("no dead letters"), "it looks into the given database");
        let another = Stack::new(broker(), "stack");
        let rejected = another.try_up(&settings_given, &[]);
        assert!(
            printed(&rejected).contains("there is already: patients, not made"),
            "not billing: {}",
            printed(&rejected)
        );
        stack.print(&["down"]);
    });
}

#[test]
fn a_directory_with_files_of_others_is_neither_used_nor_deleted() {
    let stack = Stack::new(broker(), "work");
    let (source, state) = (stack.home().join("src/main.rs"), stack.home().join("analytics.sqlite"));
    fs::create_dir_all(source.parent().unwrap()).unwrap();
    fs::write(&source, "").unwrap();
    for output in [stack.run(&["reset", "--yes"]), stack.run(&["ps"]), stack.try_up(&[], &["--native"])] {
        let printed = printed(&output);
        assert!(
            !output.status.success() && printed.contains("is not empty, and no `just up` has made it"),
            "{printed}"
        );
    }
    // A version that looked at nothing has used it.
    for (file, text) in [("backend", "native\n"), ("settings.json", "{}"), ("analytics.sqlite", "")] {
        fs::write(stack.home().join(file), text).unwrap();
    }
    let reset = stack.print(&["reset", "--yes"]);
    assert!(reset.contains("These are not of this system, and stay in") && reset.contains(": src\n"), "{reset}");
    assert!(source.is_file() && !state.exists());
}

#[test]
fn the_data_directory_is_open_to_other_users_whatever_the_umask_is_if_root_makes_it() {
    let scratch = Scratch::new().unwrap();
    let home = scratch.path().join("new/data");
    let mut ps = Command::new("sh");
    ps.args(["-c", r#"umask 077; exec "$0" ps"#]).arg(binaries().unwrap().join("stack")).env("STACK_HOME", &home);
    let output = ps.output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    for directory in [home.parent().unwrap(), &home] {
        let made = fs::metadata(directory).unwrap();
        // Then PostgreSQL is another user.
        let expected = if made.uid() == 0 { 0o755 } else { 0o700 };
        assert_eq!(made.permissions().mode() & 0o777, expected, "{directory:?}");
    }
}

#[test]
fn one_command_at_a_time_changes_the_system() {
    let stack = Stack::new(broker(), "stack");
    // It makes the directory.
    stack.print(&["ps"]);
    let mut lock = fs::File::create(stack.home().join("lock")).unwrap();
    lock.lock().unwrap();
    lock.write_all(b"just up (process 4711)\n").unwrap();
    for output in [
        stack.run(&["down"]),
        stack.run(&["reset", "--yes"]),
        stack.run(&["rebuild-analytics"]),
        stack.try_up(&[], &["--native"]),
    ] {
        let printed = printed(&output);
        assert!(!output.status.success() && printed.contains("just up (process 4711) is at work"), "{printed}");
    }
    drop(lock);
    stack.print(&["down"]);
    stack.print(&["reset", "--yes"]);
    assert!(!stack.home().exists());
}

/// A folder with programs that print a message and fail.
fn failing(folder: PathBuf, names: &[&str], message: &str) -> PathBuf {
    fs::create_dir_all(&folder).unwrap();
    for name in names {
        let program = folder.join(name);
        fs::write(&program, format!("#!/bin/sh\necho '{message}' >&2\nexit 1\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

pub(crate) fn prepend_to_path(folder: &Path) -> String {
    format!("{}:{}", folder.display(), env::var("PATH").unwrap())
}

#[test]
fn the_output_of_a_failing_tool_is_part_of_the_error() {
    let scratch = Scratch::new().unwrap();
    let message = "the message of the tool";
    let run = |arguments: &[&str], folder: &Path, more: &[(&str, &str)]| {
        let mut command = Command::new(binaries().unwrap().join("stack"));
        command.args(arguments).env("PATH", prepend_to_path(folder)).env("STACK_HOME", scratch.path().join("home"));
        command.env_remove("JAVA_HOME").env_remove("BROKER").env_remove("DATABASE_URL").envs(more.iter().copied());
        printed(&command.output().unwrap())
    };
    // Java, for example with invalid options.
    let java = failing(scratch.path().join("java"), &["java"], message);
    let output = run(&["install-test-dependencies"], &java, &[("BROKER", "kafka")]);
    assert!(output.contains("java -version prints no version") && output.contains(message), "{output}");
    // Docker, whose engine rejects us.
    let docker = failing(scratch.path().join("docker"), &["docker"], message);
    let output = run(&["up", "--docker"], &docker, &[]);
    assert!(output.contains("No Docker engine responds") && output.contains(message), "{output}");
    // The tools that download and build, with an empty cache.
    let cache = scratch.path().join("cache");
    let tools = failing(scratch.path().join("tools"), &["mvn", "npm", "cargo"], message);
    let output = run(&["install-test-dependencies"], &tools, &[("PATIENT_MANAGEMENT_CACHE", cache.to_str().unwrap())]);
    for tool in ["npm pack", "Maven", "the build of Nisshi"] {
        // Maven is used for PostgreSQL also if it is not used for Kafka because Java is missing.
        assert!(output.contains(&format!("{tool} ended: exit status: 1")), "{tool}: {output}");
    }
    assert!(output.matches(message).count() >= 3, "{output}");
}
