//! Databases that the service cannot work on, and what it says of them; databases and poolers that it can.

use std::{path::Path, time::Duration};

use config::{Environment, Reader};
use patient_service::{Service, Settings};
use runtime::{Failure, Shutdown, timeout};
use testbed::{
    Scratch, messages,
    pgbouncer::{PgBouncer, PoolMode},
    postgres::{Cluster, Durability},
    sql, until,
};

use crate::harness::{Harness, path, patient};

/// Time for a service to end.
const LIMIT: Duration = Duration::from_secs(30);

/// Starts the service on a database and waits until it ends; returns the error.
async fn startup_error(url: &str) -> Failure {
    let environment = Environment::empty()
        .with("DATABASE_URL", url)
        .with("SERVER_PORT", "0")
        .with("BILLING_SERVICE_ADDRESS", "127.0.0.1")
        .with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9");
    let mut reader = Reader::new(environment);
    let settings = Settings::read(&mut reader);
    let service = Service::build(reader.finish(settings).unwrap().0).await.unwrap();
    timeout(LIMIT, Box::pin(service.run(Shutdown::new()))).await.expect("it ends").unwrap_err()
}

/// Creates a database; `how` is the rest of the statement after its name.
async fn database(how: &str) -> String {
    let shared = testbed::shared_database().await;
    let name = format!("made_{}", uuid::Uuid::now_v7().simple());
    execute(&shared, format!("CREATE DATABASE {name} {how}")).await;
    let (before, after) = shared.rsplit_once('/').unwrap();
    format!("{before}/{name}?{}", after.split_once('?').unwrap().1)
}

async fn execute(url: &str, statements: String) {
    sql::execute(url, Box::leak(statements.into_boxed_str())).await.unwrap();
}

fn assert_names(failure: &Failure, words: &[&str]) {
    let text = failure.to_string();
    assert_eq!(failure.code(), 78, "{text}");
    assert!(!text.contains('\n'), "one line: {text}");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn an_unsuitable_database_is_reported_in_one_line_with_the_remedy() {
    runtime::block_on(2, async {
        for encoding in ["LATIN1", "SQL_ASCII"] {
            let url = database(&format!("ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")).await;
            assert_names(&startup_error(&url).await, &[encoding, "ENCODING 'UTF8'"]);
        }

        let url = database("ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0").await;
        assert_names(&startup_error(&url).await, &["LC_CTYPE", "LOCALE 'C.UTF-8'", "pg_dump"]);
        // After the proposed fix, it works.
        let url = database("ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0").await;
        Harness::start(&url, &[]).await.stop().await;

        let url = format!("{}&options=-c%20work_mem%3Dabc", testbed::shared_database().await);
        assert_names(&startup_error(&url).await, &["options in DATABASE_URL", "work_mem", "abc", "22023"]);

        let url = testbed::shared_database().await;
        sql::execute(&url, "CREATE SCHEMA elsewhere; CREATE EXTENSION pg_trgm SCHEMA elsewhere").await.unwrap();
        assert_names(
            &startup_error(&url).await,
            &["gin_trgm_ops", "pg_trgm", "elsewhere", "SET SCHEMA", "search_path"],
        );
        // After the proposed fix, it works.
        sql::execute(&url, "ALTER EXTENSION pg_trgm SET SCHEMA public").await.unwrap();
        Harness::start(&url, &[]).await.stop().await;

        let url = testbed::shared_database().await;
        sql::execute(&url, "CREATE TABLE patients (mine text)").await.unwrap();
        assert_names(&startup_error(&url).await, &["\"patients\" already exists", "42P07", "belongs to somebody else"]);

        let url = testbed::shared_database().await;
        sql::execute(
            &url,
            "CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, description text, installed_on \
            timestamptz, success boolean, checksum bytea, execution_time bigint); \
            INSERT INTO _sqlx_migrations VALUES (1, 'theirs', now(), true, 'x', 1)",
        )
        .await
        .unwrap();
        assert_names(&startup_error(&url).await, &["_sqlx_migrations", "another program"]);
    });
}

/// The version before served them. Searches may not find everything there, and nothing else is wrong.
#[test]
fn a_database_that_was_served_before_is_served_whatever_its_locale_and_the_schema_of_its_extension() {
    runtime::block_on(2, async {
        let url = database("ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0").await;
        let jane = {
            let service = Harness::start(&url, &[]).await;
            let jane = path(&service.register("Jane Doe").await);
            service.stop().await;
            jane
        };
        let is_served = async || {
            let service = Harness::start(&url, &[]).await;
            assert_eq!(service.get(&jane).await.status, 200);
            assert_eq!(service.get("/patients?search=doe").await.json().as_array().unwrap().len(), 1);
            service.stop().await;
        };
        sql::execute(&url, "UPDATE pg_database SET datctype = 'C' WHERE datname = current_database()").await.unwrap();
        assert_eq!(sql::number(&url, "SELECT cardinality(show_trgm('дми'))::bigint").await.unwrap(), 0);
        is_served().await;
        sql::execute(&url, "CREATE SCHEMA elsewhere; ALTER EXTENSION pg_trgm SET SCHEMA elsewhere").await.unwrap();
        is_served().await;
    });
}

#[test]
fn a_unique_index_that_is_lost_is_told_at_each_start() {
    runtime::block_on(2, async {
        messages::collect("postgres::requirements");
        let told = || messages::count("patients_email_key");
        let url = testbed::shared_database().await;
        Harness::start(&url, &[]).await.stop().await;
        assert_eq!(told(), 0);
        sql::execute(&url, "DROP INDEX patients_email_key").await.unwrap();
        Harness::start(&url, &[]).await.stop().await;
        assert_eq!(told(), 1);
        sql::execute(&url, "CREATE UNIQUE INDEX patients_email_key ON patients (lower(email))").await.unwrap();
        Harness::start(&url, &[]).await.stop().await;
        assert_eq!(told(), 1);
    });
}

#[test]
fn missing_privileges_are_reported_with_the_grant() {
    runtime::block_on(2, async {
        let url = testbed::shared_database().await;
        let role = format!("role_{}", uuid::Uuid::now_v7().simple());
        execute(&url, format!("CREATE ROLE {role} LOGIN")).await;
        let theirs = url.replace("postgres@", &format!("{role}@"));
        assert_names(&startup_error(&theirs).await, &["permission denied for schema public", "GRANT CREATE ON SCHEMA"]);
        execute(&url, format!("GRANT CREATE ON SCHEMA public TO {role}")).await;
        assert_names(&startup_error(&theirs).await, &["permission denied to create extension", "CREATE EXTENSION"]);
        sql::execute(&url, "CREATE EXTENSION pg_trgm").await.unwrap();
        Harness::start(&theirs, &[]).await.stop().await;

        let url = testbed::shared_database().await;
        let nowhere = format!("{url}&currentSchema=app");
        assert_names(&startup_error(&nowhere).await, &["3F000", "create the schema"]);
        sql::execute(&url, "CREATE SCHEMA app").await.unwrap();
        Harness::start(&nowhere, &[]).await.stop().await;
        assert_eq!(sql::number(&url, "SELECT count(*) FROM app.patients").await.unwrap(), 0);
        let elsewhere = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        assert_eq!(sql::number(&url, elsewhere).await.unwrap(), 0, "nothing of it is elsewhere");
    });
}

/// The service waits for what time or an administrator fixes, and reports it meanwhile.
#[test]
fn a_wrong_password_and_a_missing_database_are_reported_until_they_are_right() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let directory = scratch.path().join("postgres");
        let mut cluster = Cluster::start(&directory, Durability::Process).await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        cluster.run("postgres", "CREATE ROLE jane LOGIN SUPERUSER PASSWORD 'right'").await.unwrap();
        let rules = "local all jane scram-sha-256\nlocal all all trust\n";
        std::fs::write(directory.join("data/pg_hba.conf"), rules).unwrap();
        cluster.run("postgres", "SELECT pg_reload_conf()").await.unwrap();
        let url = cluster.url("patients").replace("postgres@", "jane:wrong@");
        let service = Harness::start_unready(&url, &[]).await;
        let told = async |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            let body = service.get("/actuator/health/readiness").await.text();
            words.iter().all(|word| body.contains(word))
        };
        until("the password is told", async || told(&["password authentication failed", "28P01"]).await).await;
        cluster.run("postgres", "ALTER ROLE jane PASSWORD 'wrong'").await.unwrap();
        until("the database is told", async || told(&["patients", "does not exist", "3D000"]).await).await;
        cluster.create_database("patients").await.unwrap();
        let ready = async || service.get("/actuator/health/readiness").await.status == 200;
        until("it is ready", ready).await;
        service.stop().await;
    });
}

async fn pgbouncer(scratch: &Scratch, mode: PoolMode) -> (Cluster, PgBouncer) {
    let directory: &Path = scratch.path();
    let mut cluster = Cluster::start(&directory.join("postgres"), Durability::Process).await.unwrap();
    scratch.guard(cluster.process()).unwrap();
    let mut pooler = PgBouncer::start(&directory.join("pgbouncer"), &cluster, mode, "").await.unwrap();
    scratch.guard(pooler.process()).unwrap();
    (cluster, pooler)
}

#[test]
fn through_pgbouncer_in_session_mode_it_works() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let (cluster, mut pooler) = pgbouncer(&scratch, PoolMode::Session).await;
        let service = Harness::start(&pooler.url("postgres"), &[]).await;
        let jane = path(&service.register("Jane Doe").await);
        assert_eq!(service.client.put(&jane, &patient("Jane Roe")).await.unwrap().status, 200);
        assert_eq!(service.get("/patients?search=roe").await.json().as_array().unwrap().len(), 1);
        // The settings of the sessions are those of a connection without it.
        let timeout = "SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'";
        assert_eq!(service.number(timeout).await, 900);
        // It is killed, and comes back.
        pooler.process().kill().await;
        assert_eq!(service.get(&jane).await.status, 503);
        let directory = scratch.path().join("pgbouncer");
        let _ = std::fs::remove_file(directory.join(".s.PGSQL.6432"));
        let mut pooler = PgBouncer::start(&directory, &cluster, PoolMode::Session, "").await.unwrap();
        scratch.guard(pooler.process()).unwrap();
        until("it is back", async || service.get(&jane).await.status == 200).await;
        service.stop().await;
    });
}

#[test]
fn through_pgbouncer_in_other_modes_it_ends_at_its_start_and_says_why() {
    runtime::block_on(2, async {
        for mode in [PoolMode::Transaction, PoolMode::Statement] {
            let scratch = Scratch::new().unwrap();
            let (_cluster, pooler) = pgbouncer(&scratch, mode).await;
            assert_names(
                &startup_error(&pooler.url("postgres")).await,
                &["DATABASE_URL", "PgBouncer", "pool_mode = session"],
            );
        }
    });
}
