//! pgbench: what PostgreSQL itself does with a script, on the same server and with as many clients.

use std::{fs, process::Command};

use testbed::postgres;

use crate::{Failure, Outcome, fixture::Ground, load::Time, tool};

/// Clients, as the load generator has connections.
const CLIENTS: u32 = 64;
/// Threads of pgbench: it must not be what limits.
const THREADS: u32 = 2;

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

/// One patient of those that [`Ground::seed`] made, by id.
pub(crate) fn read(patients: u64) -> String {
    format!(
        "\\set n random(1, {patients})\n\
         SELECT id, name, email, address, date_of_birth, registered_date, version FROM patients\n\
         WHERE id = md5((:n)::text)::uuid;\n"
    )
}

/// Transactions a second of a script.
pub(crate) async fn rate(ground: &Ground, database: &str, script: &str, time: Time) -> Outcome<f64> {
    let file = ground.directory().join("pgbench.sql");
    fs::write(&file, script)?;
    let run = async |seconds: u64| {
        let mut command = Command::new(binary("pgbench")?);
        command
            .args(["--no-vacuum", "--protocol=prepared", "-U", "postgres", "-p", "5432"])
            .args([format!("--client={CLIENTS}"), format!("--jobs={THREADS}"), format!("--time={seconds}")])
            .arg("-h")
            .arg(ground.cluster.socket_directory())
            .arg("-f")
            .args([file.as_os_str(), database.as_ref()]);
        let printed = tool::output(command).await?;
        let rate = printed.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        rate.ok_or_else(|| Failure(format!("pgbench has told no rate: {printed}")))
    };
    run(time.warm_up.as_secs()).await?;
    run(time.measured.as_secs()).await
}

/// Makes a database with the tables of both services, empty, of the system with this name.
pub(crate) async fn copy_schemas(ground: &Ground, name: &str, copy: &str) -> Outcome {
    ground.cluster.create_database(copy).await?;
    for (database, tables) in [(format!("{name}_patients"), "public.*"), (format!("{name}_billing"), "accounts")] {
        let mut dump = Command::new(binary("pg_dump")?);
        dump.args(["--schema-only", "--no-owner", "-U", "postgres", "-p", "5432", "-h"])
            .arg(ground.cluster.socket_directory())
            .args(["-t", tables])
            .arg(database);
        let schema = ground.directory().join("schema.sql");
        // The extension belongs to no table.
        let text = tool::output(dump).await?;
        fs::write(&schema, format!("create extension if not exists pg_trgm;\n{text}"))?;
        let mut restore = Command::new(binary("psql")?);
        restore
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-p", "5432", "-h"])
            .arg(ground.cluster.socket_directory())
            .args(["-d", copy, "-f"])
            .arg(schema);
        tool::output(restore).await?;
    }
    Ok(())
}

fn binary(name: &str) -> Outcome<std::path::PathBuf> {
    let directory = postgres::binaries().ok_or_else(|| Failure("there is no PostgreSQL".to_owned()))?;
    Ok(directory.join(name))
}
