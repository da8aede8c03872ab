//! Queries of the outbox: events that were committed with their change and are not published yet, and the relays' leases.

use std::{future::Future, time::Duration};

use chrono::{DateTime, Utc};
use codec::event::{Event, EventKind};
use kafka::partitioner::key_hash;
use postgres::{Database, Error, PgConnection, Row as _, query};
use telemetry::TraceContext;
use uuid::Uuid;

use crate::patient::Patient;

mod dead_letters;

pub use dead_letters::{EventDeadLetter, delete_dead_letters};

/// The constraint of the ids.
const IDS_CONSTRAINT: &str = "outbox_pkey";

/// An event to be stored.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// The patient; the record's key.
    pub patient_id: Uuid,
    /// Hash of the key by Kafka's default partitioner.
    pub key_hash: i32,
    /// Id of the event, the same in every delivery.
    pub event_id: Uuid,
    /// Type of the event.
    pub kind: EventKind,
    /// The record's value.
    pub value: Vec<u8>,
    /// `traceparent` of the request that made the change.
    pub traceparent: String,
}

impl NewEvent {
    /// The event of a change, with the patient as it is afterwards. A deletion has neither name nor email.
    pub fn of(patient: &Patient, kind: EventKind, trace: TraceContext) -> Self {
        let event_id = Uuid::now_v7();
        let (name, email) = if kind == EventKind::Deleted { ("", "") } else { (&*patient.name, &*patient.email) };
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
/// If the database fails.
pub async fn enqueue(transaction: &mut PgConnection, event: &NewEvent) -> Result<(), sqlx::Error> {
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

/// Does work that stores events. If the sequence of the outbox's ids was behind them, nothing was stored: the sequence is moved past
/// them, and the work repeated. The deadline of the database bounds the repetitions.
///
/// # Errors
/// As those of the work.
pub async fn store_events<T, F>(database: &Database, work: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    loop {
        match work().await {
            Err(Error::Constraint(name)) if name == IDS_CONSTRAINT => {}
            outcome => return outcome,
        }
        let largest = database.read(async |connection| {
            query("-- largest id\nSELECT max(id) FROM outbox").fetch_one(connection).await?.try_get(0)
        });
        // None if they have been deleted meanwhile.
        if let Some(largest_id) = largest.await? {
            move_ids_past(database, largest_id).await?;
        }
    }
}

async fn move_ids_past(database: &Database, largest_id: i64) -> Result<(), Error> {
    tracing::warn!(largest_id, "the sequence of the outbox's ids is behind them; it is moved past them");
    database.move_sequence_past("outbox_id_seq", largest_id).await
}

/// A row of the outbox: an event that is pending.
#[derive(Clone, Debug)]
pub struct OutboxRow {
    /// Id of the row, which gives the order.
    pub id: i64,
    /// The patient; the record's key.
    pub patient_id: Uuid,
    /// Hash of the key by Kafka's default partitioner.
    pub key_hash: i32,
    /// Id of the event, the same in every delivery.
    pub event_id: Uuid,
    /// Type of the event, by its name on the wire.
    pub event_type: String,
    /// The record's value.
    pub value: Vec<u8>,
    /// `traceparent` of the request that made the change.
    pub traceparent: Option<String>,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

impl OutboxRow {
    /// An event as it was stored, in this place and at this time.
    pub fn of(event: NewEvent, id: i64, created_at: DateTime<Utc>) -> Self {
        let NewEvent { patient_id, key_hash, event_id, kind, value, traceparent } = event;
        let (event_type, traceparent) = (kind.name().to_owned(), Some(traceparent));
        Self { id, patient_id, key_hash, event_id, event_type, value, traceparent, created_at }
    }

    /// The key of the row.
    pub fn key(&self) -> RowKey {
        RowKey { id: self.id, event_id: self.event_id }
    }
}

/// The key of a row of the outbox. The id alone is not enough: after a restore or a failover it is given to another event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowKey {
    /// Id of the row, which gives the order.
    pub id: i64,
    /// Id of the event.
    pub event_id: Uuid,
}

/// Selects pending events.
#[derive(Clone, Debug)]
pub struct PendingQuery<'a> {
    /// The shard, from 0, and the number of shards.
    pub shard: (i32, i32),
    /// The smallest id. It spares scanning dead tuples, which vacuum cannot remove while any transaction is open that could
    /// see them.
    pub from: i64,
    /// Partitions to exclude, and the number of partitions.
    pub excluded_partitions: (&'a [i32], i32),
    /// Ids of events to exclude, which are acknowledged and about to be deleted.
    pub excluded_events: &'a [Uuid],
    /// Maximum number of events.
    pub limit: i64,
}

/// The source of the outbox's ids, read in the same statement as the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdSource {
    /// Identifies server start, table and sequence. It changes with a restart, a failover, and when the table or its sequence
    /// is recreated: then the same ids may be given again.
    pub identity: String,
    /// The last id that the sequence has given.
    pub last_id: i64,
}

/// Outcome of an attempt to take or renew a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAttempt {
    /// The caller holds it.
    Held,
    /// Another relay holds it.
    HeldByAnother(LeaseToken),
    /// Another relay has just taken or released it.
    Unknown,
}

/// State of a lease. Every renewal changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseToken {
    holder: Uuid,
    /// The transaction that wrote the row last (`xmin`): no clock is involved.
    renewal: String,
}

/// The outbox of a database.
#[derive(Clone, Debug)]
pub struct Outbox {
    database: Database,
    leases: Database,
}

/// Size and age of the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Pending events, counted up to [`Backlog::MAX_EVENTS`].
    pub events: i64,
    /// Id of the oldest pending event.
    pub first_id: Option<i64>,
    /// Its age in seconds by the database's clock, which may have stepped since.
    pub oldest_seconds: f64,
    /// The largest id in the outbox, if the sequence is behind it: the next inserts would get ids that exist, and fail.
    pub ids_behind: Option<i64>,
}

impl Backlog {
    /// Most events that are counted, because counting costs time for each.
    pub const MAX_EVENTS: i64 = 100_000;
}

impl Outbox {
    /// The outbox of this database.
    pub fn new(database: Database) -> Self {
        Self { leases: database.clone(), database }
    }

    /// Uses these connections for the leases, so that renewals wait for no other statement.
    #[must_use]
    pub fn with_leases_on(self, leases: Database) -> Self {
        Self { leases, ..self }
    }

    /// The oldest pending events, ordered by id, and the source of their ids.
    ///
    /// # Errors
    /// If the database fails, or the connection leads to a read-only server, which may lag behind the primary.
    pub async fn pending(&self, pending_query: &PendingQuery<'_>) -> Result<(IdSource, Vec<OutboxRow>), Error> {
        let pending = self.database.read(async |connection| {
            let rows = query(
                "-- pending events
                SELECT source.*, event.* FROM (
                    SELECT concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), 'outbox'::regclass::oid,
                                     pg_relation_filenode('outbox_id_seq')) AS identity,
                           CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS last_id,
                           current_setting('transaction_read_only') = 'on' AS read_only
                    FROM outbox_id_seq
                ) source LEFT JOIN (
                    SELECT id, patient_id, key_hash, event_id, event_type, value, traceparent, created_at FROM outbox
                    WHERE id >= $1 AND key_hash % $2 = $3 AND key_hash % $4 <> ALL($5) AND event_id <> ALL($6)
                    ORDER BY id LIMIT $7
                ) event ON true ORDER BY event.id",
            )
            .bind(pending_query.from)
            .bind(pending_query.shard.1)
            .bind(pending_query.shard.0)
            .bind(pending_query.excluded_partitions.1)
            .bind(pending_query.excluded_partitions.0)
            .bind(pending_query.excluded_events)
            .bind(pending_query.limit)
            .fetch_all(connection)
            .await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            if first.try_get("read_only")? {
                // A protocol error closes the connection; a new one may lead to the primary.
                return Err(sqlx::Error::Protocol("the server is read-only".to_owned()));
            }
            let source = IdSource { identity: first.try_get("identity")?, last_id: first.try_get("last_id")? };
            let mut events = Vec::with_capacity(rows.len());
            for row in &rows {
                // Without pending events there is one row, with the source only.
                let Some(id) = row.try_get("id")? else { continue };
                events.push(OutboxRow {
                    id,
                    patient_id: row.try_get("patient_id")?,
                    key_hash: row.try_get("key_hash")?,
                    event_id: row.try_get("event_id")?,
                    event_type: row.try_get("event_type")?,
                    value: row.try_get("value")?,
                    traceparent: row.try_get("traceparent")?,
                    created_at: row.try_get("created_at")?,
                });
            }
            Ok((source, events))
        });
        pending.await
    }

    /// Deletes acknowledged events; returns those that are left. With `skip_locked`, rows that other transactions have locked
    /// are left; without it, none.
    ///
    /// # Errors
    /// If the database fails; then it is not known whether they are deleted.
    pub async fn delete(&self, rows: &[RowKey], skip_locked: bool) -> Result<Vec<RowKey>, Error> {
        let (ids, event_ids): (Vec<i64>, Vec<Uuid>) = rows.iter().map(|row| (row.id, row.event_id)).unzip();
        let delete = self.database.run_idempotent(async |connection| {
            if !skip_locked {
                query("-- delete published events\nDELETE FROM outbox WHERE id = ANY($1) AND event_id = ANY($2)")
                    .bind(&ids)
                    .bind(&event_ids)
                    .execute(connection)
                    .await?;
                return Ok(Vec::new());
            }
            let left = query(
                "-- delete published events that are not locked
                WITH deleted AS (
                    DELETE FROM outbox WHERE id = ANY(ARRAY(
                        SELECT id FROM outbox WHERE id = ANY($1) AND event_id = ANY($2) FOR UPDATE SKIP LOCKED
                    )) RETURNING id
                )
                SELECT id, event_id FROM outbox
                WHERE id = ANY($1) AND event_id = ANY($2) AND id NOT IN (SELECT id FROM deleted)",
            )
            .bind(&ids)
            .bind(&event_ids)
            .fetch_all(connection)
            .await?;
            left.iter().map(|row| Ok(RowKey { id: row.try_get(0)?, event_id: row.try_get(1)? })).collect()
        });
        delete.await
    }

    /// Advances the sequence of ids past `id`, if it is behind; see [`Backlog::ids_behind`].
    ///
    /// # Errors
    /// If the database fails.
    pub async fn move_ids_past(&self, id: i64) -> Result<(), Error> {
        move_ids_past(&self.database, id).await
    }

    /// Size and age of a shard, from the id `from` on.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn backlog(&self, shard: (i32, i32), from: i64) -> Result<Backlog, Error> {
        let backlog = self.database.read(async |connection| {
            let row = query(
                "-- outbox backlog
                SELECT count(*), min(id), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8,
                       (SELECT largest FROM (SELECT max(id) AS largest FROM outbox) ids, outbox_id_seq
                        WHERE largest >= last_value + is_called::int)
                FROM (
                    SELECT id, created_at FROM outbox WHERE id >= $1 AND key_hash % $2 = $3 ORDER BY id LIMIT $4
                ) waiting",
            )
            .bind(from)
            .bind(shard.1)
            .bind(shard.0)
            .bind(Backlog::MAX_EVENTS)
            .fetch_one(connection)
            .await?;
            Ok(Backlog {
                events: row.try_get(0)?,
                first_id: row.try_get(1)?,
                oldest_seconds: row.try_get(2)?,
                ids_behind: row.try_get(3)?,
            })
        });
        backlog.await
    }

    /// Takes or renews the lease of a shard, unless another relay holds it. `expired` is the token of a lease that, by the
    /// caller's measurement, was not renewed for its duration; the lease is taken over if its token is still the same. The
    /// database's clock is not used: `expires_at` is for operators and for replicas of the previous version.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn acquire_or_renew_lease(
        &self,
        shard: i32,
        holder: Uuid,
        duration: Duration,
        expired: Option<&LeaseToken>,
    ) -> Result<LeaseAttempt, Error> {
        let acquire = self.leases.run_idempotent(async |connection| {
            let row = query(
                "-- acquire or renew relay lease
                WITH held AS (
                    INSERT INTO relay_leases AS lease (shard, holder, expires_at)
                    VALUES ($1, $2, now() + make_interval(secs => $3))
                    ON CONFLICT (shard) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
                    WHERE lease.holder = excluded.holder OR (lease.holder = $4 AND lease.xmin::text = $5)
                    RETURNING true AS ours
                )
                SELECT held.ours, lease.holder, lease.xmin::text AS renewal
                FROM (SELECT 1) one
                LEFT JOIN held ON true
                LEFT JOIN relay_leases lease ON lease.shard = $1",
            )
            .bind(shard)
            .bind(holder)
            .bind(duration.as_secs_f64())
            .bind(expired.map(|token| token.holder))
            .bind(expired.map(|token| &*token.renewal))
            .fetch_one(connection)
            .await?;
            if row.try_get::<Option<bool>, _>("ours")?.is_some() {
                return Ok(LeaseAttempt::Held);
            }
            Ok(match row.try_get("holder")? {
                Some(holder) => LeaseAttempt::HeldByAnother(LeaseToken { holder, renewal: row.try_get("renewal")? }),
                None => LeaseAttempt::Unknown,
            })
        });
        acquire.await
    }

    /// Releases a lease, so that another replica can take it at once.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn release_lease(&self, shard: i32, holder: Uuid) -> Result<(), Error> {
        let release = self.leases.run_idempotent(async |connection| {
            query("-- release relay lease\nDELETE FROM relay_leases WHERE shard = $1 AND holder = $2")
                .bind(shard)
                .bind(holder)
                .execute(connection)
                .await
        });
        release.await.map(drop)
    }
}
