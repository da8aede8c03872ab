//! Every query of patients.
//!
//! A change, its event in the outbox, its billing task and its idempotency key are one commit.

use chrono::NaiveDate;
use codec::event::EventKind;
use postgres::{Batcher, Database, Error, PgConnection, PgRow, Requirement, Row as _, query};
use telemetry::TraceContext;
use uuid::Uuid;

use crate::{
    billing_tasks,
    outbox::{self, NewEvent, OutboxRow},
    patient::{Details, Patient},
};

mod change;
mod find;
mod insert;
mod keys;
mod list;

pub use keys::ClockObservation;
pub use list::{Begin, Direction, List, ListedPatient, Order, Position, Search, SortField};

/// The constraints that report a duplicate email or key.
const EMAIL_CONSTRAINT: &str = "patients_email_key";
const KEY_CONSTRAINT: &str = "idempotency_keys_pkey";

/// Letters of every script have a lower case and are part of trigrams. With LC_CTYPE C only those of ASCII are: a search for
/// "дмитрий" would scan the table and not find "Дмитрий", and emails could differ in their case alone. The database's provider of
/// locales decides about the first, its LC_CTYPE about the second, so both are tried. An empty database has no function for trigrams.
pub(crate) const LOCALE: Requirement = Requirement {
    before: "-- check the locale
        SELECT lower('Ä') = 'ä' AND datctype NOT IN ('C', 'POSIX') FROM pg_database WHERE datname = current_database()",
    after: "-- check the locale\nSELECT lower('Ä') = 'ä' AND show_trgm('дми') <> '{}'",
    remedy: "the locale of the database (LC_CTYPE) knows the letters of ASCII alone, so that a search does not find other names: make \
             a database with CREATE DATABASE ... ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0, and move the data with pg_dump \
             and pg_restore",
};

/// Without these indexes nothing keeps an email from being stored twice, or a repeated request from making a second patient; and the
/// service knows their violation by their names. The migrations make them, and whoever copies or repairs a database may lose them.
pub(crate) const UNIQUE_INDEXES: Requirement = Requirement {
    before: "SELECT true",
    after: "-- check the unique indexes
        SELECT count(*) = 2 FROM pg_index WHERE indisunique AND indisvalid
            AND indexrelid IN (to_regclass('patients_email_key'), to_regclass('idempotency_keys_pkey'))",
    remedy: "the unique index patients_email_key or idempotency_keys_pkey is missing or not valid, so that nothing keeps an email from \
             being stored twice, or a repeated request from making a second patient: remove duplicates, then CREATE UNIQUE INDEX \
             patients_email_key ON patients (lower(email)), or CREATE UNIQUE INDEX idempotency_keys_pkey ON idempotency_keys (key)",
};

/// The patients in a database.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    finder: Batcher<find::Find>,
    inserter: Batcher<insert::Insert>,
    updater: Batcher<change::Updates>,
    deleter: Batcher<change::Deletions>,
}

/// A key under which a request may be repeated, and what the request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Chosen by the client.
    pub key: String,
    /// Equal for equal requests.
    pub fingerprint: Vec<u8>,
}

/// Why a patient was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another patient has the email.
    #[error("another patient has this email")]
    EmailTaken,
    /// An earlier request had the key.
    #[error("an earlier request used the idempotency key")]
    KeyUsed,
    /// The database failed.
    #[error(transparent)]
    Database(Error),
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Constraint(name) if name == EMAIL_CONSTRAINT => Self::EmailTaken,
            Error::Constraint(name) if name == KEY_CONSTRAINT => Self::KeyUsed,
            error => Self::Database(error),
        }
    }
}

/// Why a patient was not updated.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Another patient has the email.
    #[error("another patient has this email")]
    EmailTaken,
    /// The database failed.
    #[error(transparent)]
    Database(Error),
}

impl From<Error> for UpdateError {
    fn from(error: Error) -> Self {
        match error {
            Error::Constraint(name) if name == EMAIL_CONSTRAINT => Self::EmailTaken,
            error => Self::Database(error),
        }
    }
}

/// The precondition of a change, by the patient's version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionCondition {
    /// The version must be one of these; none means any.
    pub only: Option<Vec<i64>>,
    /// The version must be none of these.
    pub not: Vec<i64>,
}

impl VersionCondition {
    /// Whether a version meets the precondition.
    fn allows(&self, version: i64) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&version)) && !self.not.contains(&version)
    }
}

/// The outcome of a change of one patient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// It is stored.
    Done(T),
    /// There is no such patient.
    NotFound,
    /// The patient's version does not meet the precondition.
    VersionMismatch,
}

impl Store {
    /// The patients in this database.
    pub fn new(database: Database) -> Self {
        Self {
            finder: Batcher::new(database.clone()),
            inserter: Batcher::new(database.clone()),
            updater: Batcher::new(database.clone()),
            deleter: Batcher::new(database.clone()),
            database,
        }
    }

    /// The same patients, for several steps that share one deadline.
    #[must_use]
    pub fn with_shared_deadline(&self) -> Self {
        Self {
            finder: self.finder.with_shared_deadline(),
            inserter: self.inserter.with_shared_deadline(),
            updater: self.updater.with_shared_deadline(),
            deleter: self.deleter.with_shared_deadline(),
            database: self.database.with_shared_deadline(),
        }
    }

    /// Stores a new patient with its event, its task for billing and, if there is one, its key, in one commit; gives the
    /// event as the outbox has it. `billing_after` leaves the request itself time to call billing.
    ///
    /// # Errors
    /// If the email or the key is taken, or the database cannot do it.
    pub async fn insert(
        &self,
        patient: Patient,
        key: Option<IdempotencyKey>,
        billing_after: std::time::Duration,
        trace: TraceContext,
    ) -> Result<OutboxRow, StoreError> {
        let event = NewEvent::of(&patient, EventKind::Created, trace);
        Ok(self.inserter.submit(insert::NewPatient { patient, event, key, billing_after }).await?)
    }

    /// A patient.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn find(&self, id: Uuid) -> Result<Option<Patient>, Error> {
        self.finder.submit(id).await
    }

    /// Replaces a patient's data if its version meets the precondition, and stores the event.
    ///
    /// # Errors
    /// If the email is taken, or the database fails.
    pub async fn update(
        &self,
        id: Uuid,
        condition: &VersionCondition,
        details: &Details,
        trace: TraceContext,
    ) -> Result<Change<Patient>, UpdateError> {
        let store = self.with_shared_deadline();
        let update = change::Update { id, condition: condition.clone(), details: details.clone(), trace };
        match store.updater.submit(update).await? {
            Some(patient) => Ok(Change::Done(patient)),
            None => {
                let update = || store.update_alone(id, condition, details, trace);
                Ok(outbox::store_events(&store.database, update).await?)
            }
        }
    }

    /// Updates as [`update`](Self::update) does, in a transaction of its own that locks the row.
    async fn update_alone(
        &self,
        id: Uuid,
        condition: &VersionCondition,
        details: &Details,
        trace: TraceContext,
    ) -> Result<Change<Patient>, Error> {
        let update = self.database.transaction(async |transaction| {
            let row = query(
                "-- update patient
                UPDATE patients
                SET name = $3, email = $4, address = $5, date_of_birth = $6,
                    registered_date = coalesce($7, registered_date), version = version + 1
                WHERE id = $1 AND ($2::bigint[] IS NULL OR version = ANY($2)) AND version <> ALL($8::bigint[])
                RETURNING id, name, email, address, date_of_birth, registered_date, version",
            )
            .bind(id)
            .bind(condition.only.as_deref())
            .bind(&details.name)
            .bind(&details.email)
            .bind(&details.address)
            .bind(details.date_of_birth)
            .bind(details.registered_date)
            .bind(&*condition.not)
            .fetch_optional(&mut *transaction)
            .await?;
            let Some(row) = row else { return why_unchanged(transaction, id).await };
            let patient = patient(&row)?;
            // The row is locked until the commit, so that the ids of a patient's events grow with its versions.
            outbox::enqueue(transaction, &NewEvent::of(&patient, EventKind::Updated, trace)).await?;
            Ok(Change::Done(patient))
        });
        update.await
    }

    /// Deletes a patient if its version meets the precondition, and stores the event and the task to close its account.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn delete(
        &self,
        id: Uuid,
        condition: &VersionCondition,
        trace: TraceContext,
    ) -> Result<Change<()>, Error> {
        let store = self.with_shared_deadline();
        let delete = change::Delete { id, condition: condition.clone(), trace };
        if store.deleter.submit(delete).await? {
            return Ok(Change::Done(()));
        }
        outbox::store_events(&store.database, || store.delete_alone(id, condition, trace)).await
    }

    /// Deletes as [`delete`](Self::delete) does, in a transaction of its own that locks the row.
    async fn delete_alone(
        &self,
        id: Uuid,
        condition: &VersionCondition,
        trace: TraceContext,
    ) -> Result<Change<()>, Error> {
        let delete = self.database.transaction(async |transaction| {
            let row = query(
                "-- delete patient
                DELETE FROM patients
                WHERE id = $1 AND ($2::bigint[] IS NULL OR version = ANY($2)) AND version <> ALL($3::bigint[])
                RETURNING id, name, email, address, date_of_birth, registered_date, version + 1 AS version",
            )
            .bind(id)
            .bind(condition.only.as_deref())
            .bind(&*condition.not)
            .fetch_optional(&mut *transaction)
            .await?;
            let Some(row) = row else { return why_unchanged(transaction, id).await };
            let patient = patient(&row)?;
            outbox::enqueue(transaction, &NewEvent::of(&patient, EventKind::Deleted, trace)).await?;
            outbox::delete_dead_letters(transaction, id).await?;
            billing_tasks::enqueue_close(transaction, &patient, trace).await?;
            Ok(Change::Done(()))
        });
        delete.await
    }
}

/// Why no row was changed.
async fn why_unchanged<T>(connection: &mut PgConnection, id: Uuid) -> Result<Change<T>, sqlx::Error> {
    let row =
        query("-- patient exists\nSELECT 1 FROM patients WHERE id = $1").bind(id).fetch_optional(connection).await?;
    Ok(if row.is_some() { Change::VersionMismatch } else { Change::NotFound })
}

/// A field of each row, as an array that a statement unnests.
fn column<'a, R: 'a, T>(rows: impl IntoIterator<Item = &'a R>, field: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.into_iter().map(field).collect()
}

fn patient(row: &PgRow) -> Result<Patient, sqlx::Error> {
    Ok(Patient {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        email: row.try_get("email")?,
        address: row.try_get("address")?,
        date_of_birth: row.try_get::<NaiveDate, _>("date_of_birth")?,
        registered_date: row.try_get::<NaiveDate, _>("registered_date")?,
        version: row.try_get("version")?,
    })
}
