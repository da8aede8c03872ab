//! `up` where people run it: with settings of their own, in folders of any name, beside tools that complain.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use testbed::{
    Scratch,
    broker::Kind,
    postgres::{Cluster, Durability},
    service::{self, binaries},
    sql,
};

use crate::{
    stack::{Stack, said},
    support::{register, until},
};

/// Characters that mean something to shells, URLs, lists and properties, in more bytes than the path of a socket may have.
const ODD_HOME: &str =
    "päth with 'quotes', a + and a %2f; \"all\" = in & one $HOME # but no colon ......................";

/// The broker that starts fastest of those that are here.
pub(crate) fn broker() -> Kind {
    if Kind::Nisshi.is_installed() { Kind::Nisshi } else { Kind::Kafka }
}

#[test]
fn settings_reach_the_services_from_a_home_of_any_name_and_stay_until_they_change() {
    runtime::block_on(2, async {
        let stack = Stack::new(broker(), ODD_HOME);
        let given = [("BILLING_DEADLINE", "3s"), ("HTTP_MAX_IN_FLIGHT", "77"), ("SERVER_PORT", "1")];
        let up = stack.up_with(&given, &[]);
        assert!(up.contains("BILLING_DEADLINE is passed to patient-service\n"), "{up}");
        assert!(up.contains("HTTP_MAX_IN_FLIGHT is passed to analytics-service, patient-service\n"), "{up}");
        assert!(up.contains("SERVER_PORT is not passed to the services: PATIENT_PORT"), "{up}");
        let variable = |part: &str, name: &str| stack.variable_of(part, name);
        assert_eq!(variable("patient-service", "BILLING_DEADLINE").as_deref(), Some("3s"));
        assert_eq!(variable("analytics-service", "HTTP_MAX_IN_FLIGHT").as_deref(), Some("77"));
        assert_eq!(variable("analytics-service", "BILLING_DEADLINE"), None);
        assert_ne!(variable("patient-service", "SERVER_PORT").as_deref(), Some("1"));

        register(&stack.client("PATIENT_PORT"), "Jane Doe").await;
        let analytics = stack.client("ANALYTICS_PORT");
        let counted = async || analytics.get("/analytics/summary").await.unwrap().json()["activePatients"] == 1;
        until("the patient is counted", counted).await;
        // Other commands know the system by what up was given, not by their own environment.
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
            ["patient-service", "billing-service", "analytics-service"].map(|part| stack.process(part).unwrap().pid())
        };
        let before = pids();
        stack.up_with(&given, &[]);
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
fn a_setting_that_is_wrong_is_told_in_the_words_of_the_service() {
    let stack = Stack::new(broker(), "stack");
    let up = stack.try_up(&[("BILLING_DEADLINE", "soon")], &[]);
    assert!(!up.status.success(), "{}", said(&up));
    assert!(said(&up).contains("BILLING_DEADLINE: expected a time span"), "{}", said(&up));
}

#[test]
fn every_setting_that_up_decides_is_one_of_a_service() {
    let known: Vec<String> = ["patient-service", "billing-service", "analytics-service"]
        .iter()
        .flat_map(|name| service::settings(name).unwrap())
        .map(|setting| setting.names[0].clone())
        .collect();
    let source = include_str!("../../tools/stack/src/service_settings.rs");
    let decided = source.split("const DECIDED").nth(1).unwrap().split("];").next().unwrap();
    let decided: Vec<_> =
        decided.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next()).collect();
    assert!(decided.len() > 10, "{decided:?}");
    for name in decided {
        assert!(known.iter().any(|known| known == name), "no service knows {name}");
    }
}

#[test]
fn databases_of_others_are_used_only_after_their_owner_has_agreed() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        cluster.create_database("patients").await.unwrap();
        sql::execute(&cluster.url("patients"), "CREATE TABLE precious (id int)").await.unwrap();
        let tables = async || {
            let query =
                "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
            let name = |row: &sqlx::postgres::PgRow| sqlx::Row::try_get::<String, _>(row, 0);
            sql::rows(&cluster.url("patients"), query, name).await.unwrap()
        };
        let stack = Stack::new(broker(), "stack");
        let url = cluster.url("postgres");
        let given = [("DATABASE_URL", url.as_str())];
        let refused = stack.try_up(&given, &[]);
        assert!(!refused.status.success(), "{}", said(&refused));
        assert!(said(&refused).contains("there is already: patients, not made by just up"), "{}", said(&refused));
        assert!(said(&refused).contains("just up --yes"), "{}", said(&refused));
        assert_eq!(tables().await, ["precious"], "nothing was changed");
        assert!(stack.process("broker/broker").is_none(), "and nothing was started");

        stack.up_with(&given, &["--yes"]);
        assert!(tables().await.contains(&"outbox".to_owned()));
        // What was agreed to, and what up has made itself, needs no second answer.
        stack.up_with(&given, &[]);
        assert!(stack.print(&["dead-letters"]).contains("no dead letters"), "it looks into the given database");
        let another = Stack::new(broker(), "stack");
        let refused = another.try_up(&given, &[]);
        assert!(said(&refused).contains("there is already: patients, not made"), "not billing: {}", said(&refused));
        stack.print(&["down"]);
    });
}

/// A folder with programs that say something and fail.
fn failing(folder: PathBuf, names: &[&str], words: &str) -> PathBuf {
    fs::create_dir_all(&folder).unwrap();
    for name in names {
        let program = folder.join(name);
        fs::write(&program, format!("#!/bin/sh\necho '{words}' >&2\nexit 1\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

fn before_the_path(folder: &Path) -> String {
    format!("{}:{}", folder.display(), env::var("PATH").unwrap())
}

#[test]
fn a_tool_that_fails_is_told_with_its_own_words() {
    let scratch = Scratch::new().unwrap();
    let words = "the words of the tool itself";
    let run = |arguments: &[&str], folder: &Path, more: &[(&str, &str)]| {
        let mut command = Command::new(binaries().unwrap().join("stack"));
        command.args(arguments).env("PATH", before_the_path(folder)).env("STACK_HOME", scratch.path().join("home"));
        command.env_remove("JAVA_HOME").env_remove("BROKER").env_remove("DATABASE_URL").envs(more.iter().copied());
        said(&command.output().unwrap())
    };
    // Java, with options that it refuses, say.
    let java = failing(scratch.path().join("java"), &["java"], words);
    let output = run(&["test-parts"], &java, &[("BROKER", "kafka")]);
    assert!(output.contains("java -version tells no version") && output.contains(words), "{output}");
    // Docker: the engine refuses us.
    let docker = failing(scratch.path().join("docker"), &["docker"], words);
    let output = run(&["up", "--docker"], &docker, &[]);
    assert!(output.contains("No Docker engine answers") && output.contains(words), "{output}");
    // What fetches and builds, where nothing is in the cache yet.
    let cache = scratch.path().join("cache");
    let tools = failing(scratch.path().join("tools"), &["mvn", "npm", "cargo"], words);
    let output = run(&["test-parts"], &tools, &[("PATIENT_MANAGEMENT_CACHE", cache.to_str().unwrap())]);
    for tool in ["npm pack", "Maven", "the build of Nisshi"] {
        // Without Java, Maven is not asked for Kafka, but for PostgreSQL.
        assert!(output.contains(&format!("{tool} ended: exit status: 1")), "{tool}: {output}");
    }
    assert!(output.matches(words).count() >= 3, "{output}");
}
