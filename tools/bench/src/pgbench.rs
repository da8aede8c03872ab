//! pgbench: what PostgreSQL itself does with a script, on the same server and with as many clients.

use std::{fs, process::Command};

use testbed::postgres;

use crate::{Failure, Outcome, fixture::Fixture, load::Time, tool};

/// Clients: as many as the connections of the load generator.
const CLIENTS: u32 = 64;
/// Threads of pgbench: it must not be the bottleneck.
const THREADS: u32 = 2;
/// Changes that one client makes in a second at most. Scripts number their changes, and the measurement begins after the numbers
/// that the warm-up may have used.
const MAX_CHANGES: u64 = 250;
/// Changes that all clients make in a second at most.
pub(crate) const MAX_CHANGES_OF_ALL: u64 = MAX_CHANGES * CLIENTS as u64;

/// The two statements of a registration, as apps/patient-service and apps/billing-service have them, each a commit. The
/// patient's id is in the order of time, as UUIDs of version 7 are.
pub(crate) const CREATE: &str = r"
\set n random(1, 2000000000)
WITH patient AS (
    INSERT INTO patients (id, name, email, address, date_of_birth, registered_date)
    SELECT id, 'Amara ' || (ARRAY['Abebe','Bianchi','Castillo','Dubois','Eriksson','Fischer','Garcia','Haddad'])[1 + :n % 8],
        'fedcba9876543210.' || id || '@example.org', :n % 1000 || ' Main Street, Springfield',
        date '1930-01-01' + :n % 32000, date '2020-01-01' + :n % 2000
    FROM (SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
        || substr(md5(random()::text), 1, 19))::uuid AS id) new
    RETURNING id
), event AS (
    INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value, traceparent)
    SELECT id, :n, gen_random_uuid(), 'PATIENT_CREATED', decode(repeat('0a', 200), 'hex'),
        '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' FROM patient
)
INSERT INTO billing_tasks (patient_id, action, traceparent, next_attempt_at)
SELECT id, 'OPEN', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', now() + make_interval(secs => 5)
FROM patient RETURNING patient_id AS pid \gset
INSERT INTO accounts (patient_id, id, name, email)
VALUES (:pid::uuid, gen_random_uuid(), 'Amara Abebe', 'fedcba9876543210.' || :pid || '@example.org')
ON CONFLICT (patient_id) DO NOTHING RETURNING id, status;
";

/// The select of one of `patients` that [`Fixture::seed`] has inserted, by id.
pub(crate) fn read(patients: u64) -> String {
    format!(
        "\\set n random(1, {patients})\n\
         SELECT id, name, email, address, date_of_birth, registered_date, version FROM patients\n\
         WHERE id = md5((:n)::text)::uuid;\n"
    )
}

/// The two statements of an update of one of `patients` that [`Fixture::seed`] has inserted, as apps/patient-service has them:
/// the patient as it is, and the change with its event, in one commit.
pub(crate) fn update(patients: u64) -> String {
    format!(
        r"
\set n random(1, {patients})
\set m random(1, 2000000000)
SELECT id AS pid, version FROM (
    SELECT id, name, email, address, date_of_birth, registered_date, version FROM patients
    WHERE id = ANY(ARRAY[md5((:n)::text)::uuid])
) found \gset
WITH changed AS (
    UPDATE patients
    SET name = 'Amara ' || (ARRAY['Abebe','Bianchi','Castillo','Dubois','Eriksson','Fischer','Garcia','Haddad'])[1 + :m % 8],
        email = :pid || '@example.org', address = :m % 1000 || ' Main Street, Springfield',
        date_of_birth = date '1930-01-01' + :m % 32000, registered_date = date '2020-01-01' + :m % 2000,
        version = version + 1
    WHERE id = :pid::uuid AND version = :version::bigint
    RETURNING id
)
INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value, traceparent)
SELECT id, :m, gen_random_uuid(), 'PATIENT_UPDATED', decode(repeat('0a', 200), 'hex'),
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' FROM changed;
"
    )
}

/// The two statements of a deletion. Each client deletes patients of its own among those that [`Fixture::seed`] has inserted after
/// the number `from`.
pub(crate) fn delete(from: u64) -> String {
    format!(
        r"
\set i :i + 1
\set n {from} + 1 + :client_id + {CLIENTS} * :i
SELECT id AS pid, version FROM (
    SELECT id, name, email, address, date_of_birth, registered_date, version FROM patients
    WHERE id = ANY(ARRAY[md5((:n)::text)::uuid])
) found \gset
WITH deleted AS (
    DELETE FROM patients WHERE id = :pid::uuid AND version = :version::bigint RETURNING id, name, email
), event AS (
    INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value, traceparent)
    SELECT id, :n, gen_random_uuid(), 'PATIENT_DELETED', decode(repeat('0a', 100), 'hex'),
        '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' FROM deleted
), superseded_events AS (
    DELETE FROM outbox_dead_letters dead USING deleted WHERE dead.patient_id = deleted.id
), superseded_task AS (
    DELETE FROM billing_task_dead_letters dead USING deleted WHERE dead.patient_id = deleted.id
)
INSERT INTO billing_tasks (patient_id, action, name, email, traceparent, next_attempt_at)
SELECT id, 'CLOSE', name, email, '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', now() FROM deleted
ON CONFLICT (patient_id) DO UPDATE
SET action = excluded.action, name = excluded.name, email = excluded.email, traceparent = excluded.traceparent,
    attempts = 0, rejections = 0, next_attempt_at = excluded.next_attempt_at;
"
    )
}

/// Transactions a second of a script.
pub(crate) async fn rate(fixture: &Fixture, database: &str, script: &str, time: Time) -> Outcome<f64> {
    let file = fixture.directory().join("pgbench.sql");
    fs::write(&file, script)?;
    let run = async |measured: bool, seconds: u64| {
        let mut command = Command::new(binary("pgbench")?);
        command
            .args(["--no-vacuum", "--protocol=prepared", "-U", "postgres", "-p", "5432"])
            // The number of each client's first patient, in scripts that number them.
            .arg(format!("--define=i={}", if measured { MAX_CHANGES * time.warm_up.as_secs() } else { 0 }))
            .args([format!("--client={CLIENTS}"), format!("--jobs={THREADS}"), format!("--time={seconds}")])
            .arg("-h")
            .arg(fixture.cluster.socket_directory())
            .arg("-f")
            .args([file.as_os_str(), database.as_ref()]);
        let printed = tool::output(command).await?;
        let rate = printed.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        rate.ok_or_else(|| Failure(format!("pgbench has printed no rate: {printed}")))
    };
    run(false, time.warm_up.as_secs()).await?;
    run(true, time.measured.as_secs()).await
}

/// Creates the database `copy` with the empty tables of both services of the system `name`.
pub(crate) async fn copy_schemas(fixture: &Fixture, name: &str, copy: &str) -> Outcome {
    fixture.cluster.create_database(copy).await?;
    for (database, tables) in [(format!("{name}_patients"), "public.*"), (format!("{name}_billing"), "accounts")] {
        let mut dump = Command::new(binary("pg_dump")?);
        dump.args(["--schema-only", "--no-owner", "-U", "postgres", "-p", "5432", "-h"])
            .arg(fixture.cluster.socket_directory())
            .args(["-t", tables])
            .arg(database);
        let schema = fixture.directory().join("schema.sql");
        // The extension belongs to no table.
        let text = tool::output(dump).await?;
        fs::write(&schema, format!("create extension if not exists pg_trgm;\n{text}"))?;
        let mut restore = Command::new(binary("psql")?);
        restore
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-p", "5432", "-h"])
            .arg(fixture.cluster.socket_directory())
            .args(["-d", copy, "-f"])
            .arg(schema);
        tool::output(restore).await?;
    }
    Ok(())
}

/// A command that prints PostgreSQL's counters of these databases, one a line, as `load --counters` reads them.
pub(crate) fn counters_command(fixture: &Fixture, databases: &[&str]) -> Outcome<String> {
    let names: Vec<_> = databases.iter().map(|name| format!("'{name}'")).collect();
    let names = names.join(", ");
    let mut sql = format!(
        "select 'transactions of ' || datname, xact_commit + xact_rollback from pg_stat_database
         where datname in ({names})
         union all select 'bytes of WAL', pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"
    );
    if fixture.counts_statements() {
        sql += &format!(
            " union all select 'statements of ' || datname, sum(calls) from pg_stat_statements s
              join pg_database d on d.oid = s.dbid where datname in ({names}) group by datname"
        );
    }
    let psql = binary("psql")?;
    let sockets = fixture.cluster.socket_directory();
    // The paths are those of this run's own directories, which have no quotes.
    Ok(format!(
        "'{}' -X -At -F ' ' -U postgres -p 5432 -h '{}' -d postgres -c \"{sql}\"",
        psql.display(),
        sockets.display()
    ))
}

/// The path of a program of PostgreSQL: beside the server, symbolic links resolved, because a folder on the PATH may have links
/// to some of them alone.
pub(crate) fn binary(name: &str) -> Outcome<std::path::PathBuf> {
    let directory = postgres::binaries().ok_or_else(|| Failure("there is no PostgreSQL".to_owned()))?;
    let server = directory.join("postgres").canonicalize()?;
    Ok(server.with_file_name(name))
}
