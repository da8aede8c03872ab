//! The role of `DATABASE_URL` where that of `DATABASE_OWNER_URL` owns the tables: it may read and write rows and nothing else.
//!
//! The owner's default privileges grant it that on each new table. If they are missing, the service says so at its start, and
//! waits until they are granted.

use std::time::Instant;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, query};

use crate::{
    Error,
    error::MigrationFailure,
    pool::{Pools, Purpose, unavailable},
    requirements,
    settings::OWNER_URL,
};

/// The tables and sequences of the service, without the history of its migrations: the database, the schema, and of each its name as
/// it is written in a statement and its object id.
const OBJECTS: &str =
    "SELECT current_database()::text, quote_ident(current_schema()), quote_ident(relname), oid::bigint
    FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'S')
    AND relname <> '_sqlx_migrations' ORDER BY relname";

/// Of each of these: the database, the object id as the role finds it, whether it is a sequence, the privileges that the role lacks,
/// and whether it could grant them itself.
const PRIVILEGES: &str = "SELECT current_database()::text, found.oid::bigint, coalesce(relkind = 'S', false),
        array_to_string(ARRAY(
            SELECT privilege FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
            WHERE NOT CASE
                WHEN relkind <> 'S' THEN has_table_privilege(found.oid, privilege)
                WHEN privilege IN ('SELECT', 'UPDATE') THEN has_sequence_privilege(found.oid, privilege)
                ELSE true END
        ), ', '),
        coalesce(pg_has_role(relowner, 'USAGE'), false)
    FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, position)
    CROSS JOIN LATERAL (SELECT to_regclass(wanted.name)::oid AS oid) AS found
    LEFT JOIN pg_class ON pg_class.oid = found.oid
    ORDER BY wanted.position";

/// Checks that the role of `DATABASE_URL` can work on the tables that the owner has migrated.
pub(crate) async fn check(owner: &mut PgConnection, pools: &Pools) -> Result<(), MigrationFailure> {
    let until = Instant::now() + pools.settings().acquire;
    let mut connection = pools.connect(until, Purpose::Work).await.map_err(MigrationFailure::Transient)?;
    requirements::check(&mut connection, pools, Purpose::Work, until).await?;
    let outcome = compare(owner, &mut connection).await;
    if outcome.is_ok() {
        requirements::warn_unless_durable(&mut connection).await;
    }
    let _ = connection.close().await;
    outcome.map_err(MigrationFailure::Transient)
}

async fn compare(owner: &mut PgConnection, connection: &mut PgConnection) -> Result<(), Error> {
    let role = query("SELECT quote_ident(current_user)").persistent(false).fetch_one(&mut *connection).await?;
    let role: String = role.try_get(0)?;
    let objects = query(OBJECTS).persistent(false).fetch_all(&mut *owner).await?;
    let objects = objects.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)));
    let objects = objects.collect::<Result<Vec<(String, String, String, i64)>, sqlx::Error>>()?;
    let names: Vec<_> = objects.iter().map(|(_, _, name, _)| name.clone()).collect();
    let found = query(PRIVILEGES).bind(names).persistent(false).fetch_all(&mut *connection).await?;
    let mut owned = 0;
    for ((database, schema, name, id), row) in objects.iter().zip(&found) {
        let (its_database, its_id): (String, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        if its_database != *database || its_id != Some(*id) {
            return Err(unavailable(format!(
                "DATABASE_URL and {OWNER_URL} do not lead to the same {name}: give both the same host, database and \
                 currentSchema, and GRANT USAGE ON SCHEMA {schema} TO {role}"
            )));
        }
        let (is_sequence, missing): (bool, String) = (row.try_get(2)?, row.try_get(3)?);
        if !missing.is_empty() {
            let (kind, all, needed) = if is_sequence {
                ("sequence", "SEQUENCES", "SELECT, UPDATE")
            } else {
                ("table", "TABLES", "SELECT, INSERT, UPDATE, DELETE")
            };
            return Err(unavailable(format!(
                "the role {role} of DATABASE_URL lacks {missing} on the {kind} {name}: as its owner, GRANT {needed} ON ALL {all} \
                 IN SCHEMA {schema} TO {role}, and ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {needed} ON {all} TO \
                 {role} for those of later migrations"
            )));
        }
        owned += i32::from(row.try_get::<bool, _>(4)?);
    }
    if owned > 0 {
        tracing::warn!(role, "the role of DATABASE_URL can change and drop tables although {OWNER_URL} names an owner");
        return Ok(());
    }
    // The default privileges include the history, which decides what the owner executes at the next start.
    let revoke = format!("REVOKE ALL ON TABLE _sqlx_migrations FROM {role}");
    sqlx::raw_sql(AssertSqlSafe(revoke)).execute(owner).await?;
    Ok(())
}
