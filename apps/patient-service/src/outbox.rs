//! Every query of the outbox: events that are stored with the change they tell of and not yet published.

use std::time::Duration;

use chrono::{DateTime, Utc};
use codec::event::{Event, Kind};
use kafka::partitioner::key_hash;
use postgres::{Database, Error, PgConnection, Row as _, query};
use telemetry::TraceContext;
use uuid::Uuid;

use crate::patient::Patient;

mod dead_letters;

pub use dead_letters::EventDeadLetter;

/// An event about to be stored.
#[derive(Clone, Debug)]
pub struct NewEvent {
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

impl NewEvent {
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

/// An event that waits to be published.
#[derive(Clone, Debug)]
pub struct OutboxRow {
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

impl OutboxRow {
    /// What names it.
    pub fn key(&self) -> RowKey {
        RowKey { id: self.id, event_id: self.event_id }
    }
}

/// Names a row of the outbox. The id alone does not: after a restore or a failover the same ids are given to other events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowKey {
    /// Its place in the outbox.
    pub id: i64,
    /// The event's own id.
    pub event_id: Uuid,
}

/// Which of the waiting events are wanted.
#[derive(Clone, Debug)]
pub struct PendingQuery<'a> {
    /// The shard, from 0, and of how many.
    pub shard: (i32, i32),
    /// No event before this place. It spares reading what was deleted long ago and cannot be cleaned up as long as some
    /// transaction, be it unrelated, might still look at it.
    pub from: i64,
    /// Partitions to leave out, of how many.
    pub without: (&'a [i32], i32),
    /// Events that the broker has and that are being deleted.
    pub acked: &'a [Uuid],
    /// How many at most.
    pub limit: i64,
}

/// Where the ids of the outbox come from, as the server told together with the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdSource {
    /// Another one after the server was started anew, after a failover to another server, and after the table or its
    /// sequence was made anew: then ids that were given before may be given again.
    pub identity: String,
    /// The last id that the sequence has given.
    pub last_id: i64,
}

/// What a relay may do with a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is the holder's who asked.
    Ours,
    /// Another holder has it.
    Others(LeaseToken),
    /// Another holder has just taken it, or given it up.
    Unknown,
}

/// A lease as it was seen. Every renewal changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseToken {
    holder: Uuid,
    /// The transaction that wrote the row last (`xmin`), which no clock has a part in.
    renewal: String,
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
    /// Events that wait, counted up to [`Backlog::MAX_EVENTS`].
    pub events: i64,
    /// The place of the one that waits longest.
    pub first_id: Option<i64>,
    /// Seconds for which it has waited by the database's clock, which may have stepped since.
    pub oldest_seconds: f64,
    /// The largest id in the outbox, if the sequence of ids is behind it: the next changes would get ids that are taken,
    /// and fail.
    pub ids_behind: Option<i64>,
}

impl Backlog {
    /// Where the counting of events stops, because it costs the more the more there are.
    pub const MAX_EVENTS: i64 = 100_000;
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

    /// The oldest waiting events, in the order of their ids, and where their ids come from.
    ///
    /// # Errors
    /// If the database cannot be asked, or the connection leads to a server that only reads: what it shows may be older
    /// than what another server has.
    pub async fn pending(&self, wanted: &PendingQuery<'_>) -> Result<(IdSource, Vec<OutboxRow>), Error> {
        let pending = self.database.run_idempotent(async |connection| {
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
            .bind(wanted.from)
            .bind(wanted.shard.1)
            .bind(wanted.shard.0)
            .bind(wanted.without.1)
            .bind(wanted.without.0)
            .bind(wanted.acked)
            .bind(wanted.limit)
            .fetch_all(connection)
            .await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            if first.try_get("read_only")? {
                // As an error of the connection, which closes it: a new one may lead to the right server.
                return Err(sqlx::Error::Protocol("the server only reads".to_owned()));
            }
            let source = IdSource { identity: first.try_get("identity")?, last_id: first.try_get("last_id")? };
            let mut events = Vec::with_capacity(rows.len());
            for row in &rows {
                // Without any event there is one row, of the source alone.
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

    /// Deletes events that the broker has acknowledged; gives those that are still there, which only happens with
    /// `skip_locked`: then rows that other transactions have locked are passed over instead of waited for.
    ///
    /// # Errors
    /// If the database cannot do it: then none is deleted, as far as one knows.
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

    /// Moves the sequence of ids past `id`, if it has fallen behind; see [`Backlog::ids_behind`].
    ///
    /// # Errors
    /// If the database cannot do it.
    pub async fn move_ids_past(&self, id: i64) -> Result<(), Error> {
        let advance = self.database.run_idempotent(async |connection| {
            // Further than needed, because others may take ids between the look at the sequence and the move.
            query("-- move outbox ids\nSELECT setval('outbox_id_seq', $1) FROM outbox_id_seq WHERE last_value < $1")
                .bind(id.saturating_add(1000))
                .execute(connection)
                .await
        });
        advance.await.map(drop)
    }

    /// How full a shard of it is, from a place on.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn backlog(&self, shard: (i32, i32), from: i64) -> Result<Backlog, Error> {
        let backlog = self.database.run_idempotent(async |connection| {
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

    /// Takes or renews the lease of a shard, unless another holder has it. `abandoned` is a lease that nobody has renewed
    /// for its length, as the caller has measured it; it is taken over if that is still so. No clock of the database has a
    /// part in it: `expires_at` is there for people who look, and for replicas of the version before.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn hold_lease(
        &self,
        shard: i32,
        holder: Uuid,
        duration: Duration,
        abandoned: Option<&LeaseToken>,
    ) -> Result<Hold, Error> {
        let hold = self.leases.run_idempotent(async |connection| {
            let row = query(
                "-- hold relay lease
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
            .bind(abandoned.map(|token| token.holder))
            .bind(abandoned.map(|token| &*token.renewal))
            .fetch_one(connection)
            .await?;
            if row.try_get::<Option<bool>, _>("ours")?.is_some() {
                return Ok(Hold::Ours);
            }
            Ok(match row.try_get("holder")? {
                Some(holder) => Hold::Others(LeaseToken { holder, renewal: row.try_get("renewal")? }),
                None => Hold::Unknown,
            })
        });
        hold.await
    }

    /// Gives a lease up, so that another replica need not wait for its end.
    ///
    /// # Errors
    /// If the database cannot do it.
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
