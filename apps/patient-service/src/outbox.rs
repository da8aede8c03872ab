//! Every query of the outbox: events that are stored with the change they tell of and not yet published.

use std::time::Duration;

use chrono::{DateTime, Utc};
use codec::{
    event::{Event, Kind},
    partition::key_hash,
};
use postgres::{Database, Error, PgConnection, Row as _, query};
use telemetry::TraceContext;
use uuid::Uuid;

use crate::patient::Patient;

/// An event about to be stored.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Whom it happened to.
    pub patient_id: Uuid,
    /// Of the patient's id, as Kafka's partitioner has it.
    pub key_hash: i32,
    /// Names the event in every delivery.
    pub event_id: Uuid,
    /// What happened.
    pub kind: Kind,
    /// The record's value.
    pub value: Vec<u8>,
    /// The trace of the request that it came with.
    pub traceparent: String,
}

impl Outgoing {
    /// The event of a change that left the patient like this. A deletion's carries neither name nor email.
    pub fn of(patient: &Patient, kind: Kind, trace: TraceContext) -> Self {
        let event_id = Uuid::now_v7();
        let (name, email) = if kind == Kind::Deleted { ("", "") } else { (&*patient.name, &*patient.email) };
        let event = Event {
            id: event_id,
            patient_id: patient.id,
            kind,
            version: patient.version,
            time: Utc::now(),
            name,
            email,
            registered_date: patient.registered_date,
            date_of_birth: patient.date_of_birth,
        };
        Self {
            patient_id: patient.id,
            key_hash: key_hash(patient.id.to_string().as_bytes()),
            event_id,
            kind,
            value: event.encode(),
            traceparent: trace.to_string(),
        }
    }
}

/// Stores an event in the caller's transaction.
///
/// # Errors
/// If the database cannot do it.
pub async fn enqueue(transaction: &mut PgConnection, event: &Outgoing) -> Result<(), sqlx::Error> {
    query(
        "-- enqueue event
        INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value, traceparent)
        VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(event.patient_id)
    .bind(event.key_hash)
    .bind(event.event_id)
    .bind(event.kind.name())
    .bind(&event.value)
    .bind(&event.traceparent)
    .execute(transaction)
    .await?;
    Ok(())
}

/// An event that waits to be published.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Its place in the outbox.
    pub id: i64,
    /// Whom it happened to.
    pub patient_id: Uuid,
    /// Of the patient's id, as Kafka's partitioner has it.
    pub key_hash: i32,
    /// Names the event in every delivery.
    pub event_id: Uuid,
    /// What happened, by its name on the wire.
    pub event_type: String,
    /// The record's value.
    pub value: Vec<u8>,
    /// The trace of the request that it came with.
    pub traceparent: Option<String>,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// Which of the waiting events are wanted.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The shard, from 0, and of how many.
    pub shard: (i32, i32),
    /// No event before this place. It spares reading what was deleted long ago and cannot be cleaned up as long as some
    /// transaction, be it unrelated, might still look at it.
    pub from: i64,
    /// Partitions to leave out, of how many.
    pub without: (&'a [i32], i32),
    /// Events that the broker has and that are being deleted.
    pub acknowledged: &'a [i64],
    /// How many at most.
    pub limit: i64,
}

/// The outbox of a database.
#[derive(Clone, Debug)]
pub struct Outbox {
    database: Database,
    leases: Database,
}

/// How full the outbox is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Events that wait, counted up to [`Backlog::MOST`].
    pub events: i64,
    /// Seconds for which the oldest of them has waited.
    pub oldest_seconds: f64,
}

impl Backlog {
    /// Where the counting of events stops, because it costs the more the more there are.
    pub const MOST: i64 = 100_000;
}

impl Outbox {
    /// The outbox of this database.
    pub fn new(database: Database) -> Self {
        Self { leases: database.clone(), database }
    }

    /// Has the leases renewed over these connections, where they wait for no other statement.
    #[must_use]
    pub fn with_leases_on(self, leases: Database) -> Self {
        Self { leases, ..self }
    }

    /// The oldest waiting events, in the order of their ids.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn pending(&self, wanted: &Wanted<'_>) -> Result<Vec<Pending>, Error> {
        let pending = self.database.run(async |connection| {
            let rows = query(
                "-- pending events
                SELECT id, patient_id, key_hash, event_id, event_type, value, traceparent, created_at FROM outbox
                WHERE id >= $1 AND key_hash % $2 = $3 AND key_hash % $4 <> ALL($5) AND id <> ALL($6) ORDER BY id LIMIT $7",
            )
            .bind(wanted.from)
            .bind(wanted.shard.1)
            .bind(wanted.shard.0)
            .bind(wanted.without.1)
            .bind(wanted.without.0)
            .bind(wanted.acknowledged)
            .bind(wanted.limit)
            .fetch_all(connection)
            .await?;
            let read = |row: &postgres::PgRow| {
                Ok(Pending {
                    id: row.try_get(0)?,
                    patient_id: row.try_get(1)?,
                    key_hash: row.try_get(2)?,
                    event_id: row.try_get(3)?,
                    event_type: row.try_get(4)?,
                    value: row.try_get(5)?,
                    traceparent: row.try_get(6)?,
                    created_at: row.try_get(7)?,
                })
            };
            rows.iter().map(read).collect()
        });
        pending.await
    }

    /// Forgets events that the broker has acknowledged.
    ///
    /// # Errors
    /// If the database cannot do it: then they will be published again.
    pub async fn delete(&self, ids: &[i64]) -> Result<(), Error> {
        let delete = self.database.run(async |connection| {
            query("-- delete published events\nDELETE FROM outbox WHERE id = ANY($1)")
                .bind(ids)
                .execute(connection)
                .await
        });
        delete.await.map(drop)
    }

    /// Puts an event that the broker refuses for good aside, so that it does not hold up the others.
    ///
    /// # Errors
    /// If the database cannot do it.
    pub async fn bury(&self, id: i64, error: &str) -> Result<(), Error> {
        let bury = self.database.run(async |connection| {
            query(
                "-- bury event
                WITH refused AS (
                    DELETE FROM outbox WHERE id = $1
                    RETURNING id, patient_id, key_hash, event_id, event_type, value, traceparent, created_at
                )
                INSERT INTO outbox_dead_letters
                    (id, patient_id, key_hash, event_id, event_type, value, traceparent, created_at, error)
                SELECT *, $2 FROM refused",
            )
            .bind(id)
            .bind(error)
            .execute(connection)
            .await
        });
        bury.await.map(drop)
    }

    /// How full a shard of it is, from a place on.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn backlog(&self, shard: (i32, i32), from: i64) -> Result<Backlog, Error> {
        let backlog = self.database.run(async |connection| {
            let row = query(
                "-- outbox backlog
                SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
                FROM (SELECT created_at FROM outbox WHERE id >= $1 AND key_hash % $2 = $3 ORDER BY id LIMIT $4) waiting",
            )
            .bind(from)
            .bind(shard.1)
            .bind(shard.0)
            .bind(Backlog::MOST)
            .fetch_one(connection)
            .await?;
            Ok(Backlog { events: row.try_get(0)?, oldest_seconds: row.try_get(1)? })
        });
        backlog.await
    }

    /// Takes or keeps the lease of a shard; false if another holder has it. Only the database's clock counts.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn hold_lease(&self, shard: i32, holder: Uuid, duration: Duration) -> Result<bool, Error> {
        let hold = self.leases.run(async |connection| {
            let row = query(
                "-- hold relay lease
                INSERT INTO relay_leases AS lease (shard, holder, expires_at)
                VALUES ($1, $2, now() + make_interval(secs => $3))
                ON CONFLICT (shard) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
                WHERE lease.holder = excluded.holder OR lease.expires_at < now()
                RETURNING true",
            )
            .bind(shard)
            .bind(holder)
            .bind(duration.as_secs_f64())
            .fetch_optional(connection)
            .await?;
            Ok(row.is_some())
        });
        hold.await
    }

    /// Gives a lease up, so that another replica need not wait for its end.
    ///
    /// # Errors
    /// If the database cannot do it.
    pub async fn release_lease(&self, shard: i32, holder: Uuid) -> Result<(), Error> {
        let release = self.leases.run(async |connection| {
            query("-- release relay lease\nDELETE FROM relay_leases WHERE shard = $1 AND holder = $2")
                .bind(shard)
                .bind(holder)
                .execute(connection)
                .await
        });
        release.await.map(drop)
    }
}
