//! The use cases of the registry. Each change is one transaction; what it sets off is told to the parts that do it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{NaiveDate, TimeDelta, Utc};
use runtime::Notify;
use sha2::{Digest as _, Sha256};
use telemetry::TraceContext;
use uuid::Uuid;

use crate::{
    billing::{Account, Billing},
    billing_tasks::RECONCILE_AFTER,
    completed_tasks::CompletedTasks,
    patient::{Details, Patient},
    relay::RelayWaker,
    store::{Change, IdempotencyKey, List, Listed, Store, StoreError, VersionCondition},
};

/// How far before UTC a day begins where it begins first (Kiritimati).
const EARLIEST_DAY: TimeDelta = TimeDelta::hours(14);

/// The registry of patients.
#[derive(Clone)]
pub struct Registry {
    store: Store,
    billing: Arc<Billing>,
    completed: CompletedTasks,
    relay: RelayWaker,
    reconciler: Arc<Notify>,
}

/// A patient just registered, or registered before by the same request.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The patient.
    pub patient: Patient,
    /// The billing account; none while billing has not answered.
    pub account: Option<Account>,
    /// How long the commit took.
    pub stored_in: Duration,
    /// How long billing took, or had.
    pub billed_in: Duration,
}

/// Why a use case failed.
#[derive(Debug)]
pub enum Error {
    /// There is no such patient.
    NotFound,
    /// Another patient has the email.
    EmailTaken,
    /// The patient's version is none that the client wants to change.
    OtherVersion,
    /// The idempotency key was used for another request.
    KeyReused,
    /// The idempotency key was used for this request, and the patient that it made has been deleted.
    KeySpent,
    /// The idempotency key was forgotten while it was looked up; the request may be repeated.
    KeyForgotten,
    /// The database could not do it.
    Database(postgres::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("there is no such patient"),
            Self::EmailTaken => f.write_str("another patient has this email"),
            Self::OtherVersion => f.write_str("the patient has another version"),
            Self::KeyReused => f.write_str("the idempotency key was used for another request"),
            Self::KeyForgotten => f.write_str("the idempotency key was forgotten while it was looked up"),
            Self::KeySpent => f.write_str("the patient that this idempotency key made has been deleted"),
            Self::Database(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<postgres::Error> for Error {
    fn from(error: postgres::Error) -> Self {
        Self::Database(error)
    }
}

impl Registry {
    /// A registry of the patients in `store`. `relay` and `reconciler` are woken when there is something for them;
    /// `completed` takes the accounts that a request itself has opened.
    pub fn new(
        store: Store,
        billing: Arc<Billing>,
        completed: CompletedTasks,
        relay: RelayWaker,
        reconciler: Arc<Notify>,
    ) -> Self {
        Self { store, billing, completed, relay, reconciler }
    }

    /// The last day that is not in the future: the one that it is where days begin first, at UTC+14. A patient may be born
    /// there, and registered by somebody there, while it is still yesterday elsewhere.
    pub fn latest_day(&self) -> NaiveDate {
        (Utc::now() + EARLIEST_DAY).date_naive()
    }

    /// Registers a patient. With a key, repetitions of the request give the patient that the first one made.
    ///
    /// # Errors
    /// If the email is taken, the key does not fit, or the database cannot do it. Not if billing fails: its part is then
    /// made up for later.
    pub async fn register(
        &self,
        details: Details,
        key: Option<String>,
        trace: TraceContext,
    ) -> Result<Registered, Error> {
        let started = Instant::now();
        let key = key.map(|key| IdempotencyKey { key, fingerprint: fingerprint(&details) });
        let Details { name, email, address, date_of_birth, registered_date } = details;
        let registered_date = registered_date.unwrap_or_else(|| Utc::now().date_naive());
        let id = Uuid::now_v7();
        let patient = Patient { id, name, email, address, date_of_birth, registered_date, version: 1 };
        let billing_after = self.billing.deadline() + RECONCILE_AFTER;
        let store = self.store.with_shared_deadline();
        let patient = match store.insert(patient.clone(), key.clone(), billing_after, trace).await {
            Ok(()) => {
                self.relay.notify();
                tracing::info!(patient_id = %patient.id, "patient registered");
                patient
            }
            Err(StoreError::Database(error)) => return Err(Error::Database(error)),
            // Which of the two a repetition meets first is the database's choice.
            Err(conflict @ (StoreError::EmailTaken | StoreError::KeyUsed)) => {
                let repeated = match &key {
                    Some(key) => repeated(&store, key).await?,
                    None => None,
                };
                match (repeated, conflict) {
                    (Some(patient), _) => patient,
                    (None, StoreError::EmailTaken) => return Err(Error::EmailTaken),
                    // The key was there a moment ago and was forgotten in between.
                    (None, _) => return Err(Error::KeyForgotten),
                }
            }
        };
        let stored_in = started.elapsed();
        let account = self.billing.open(patient.id, &patient.name, &patient.email, trace).await.ok();
        if account.is_some() {
            self.completed.send(patient.id);
        }
        Ok(Registered { patient, account, stored_in, billed_in: started.elapsed() - stored_in })
    }

    /// A patient.
    ///
    /// # Errors
    /// If there is none of this id, or the database cannot be asked.
    pub async fn find(&self, id: Uuid) -> Result<Patient, Error> {
        self.store.find(id).await?.ok_or(Error::NotFound)
    }

    /// Patients in an order.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn list(&self, list: &List) -> Result<Vec<Listed>, Error> {
        Ok(self.store.with_shared_deadline().list(list).await?)
    }

    /// Patients in an order, and how many there are in all, or how many its search finds.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn list_and_count(&self, list: &List) -> Result<(Vec<Listed>, i64), Error> {
        let store = self.store.with_shared_deadline();
        Ok((store.list(list).await?, store.count(list.search.as_ref()).await?))
    }

    /// Replaces a patient's data, if the version is one that the change is for.
    ///
    /// # Errors
    /// If there is no such patient or version, the email is taken, or the database cannot do it.
    pub async fn update(
        &self,
        id: Uuid,
        condition: &VersionCondition,
        details: Details,
        trace: TraceContext,
    ) -> Result<Patient, Error> {
        let change = self.store.update(id, condition, &details, trace).await.map_err(|error| match error {
            StoreError::EmailTaken => Error::EmailTaken,
            StoreError::KeyUsed => unreachable!("an update has no idempotency key"),
            StoreError::Database(error) => Error::Database(error),
        });
        let patient = changed(change?)?;
        self.relay.notify();
        tracing::info!(patient_id = %id, version = patient.version, "patient updated");
        Ok(patient)
    }

    /// Deletes a patient, if the version is one that the change is for. Its billing account is closed soon after.
    ///
    /// # Errors
    /// If there is no such patient or version, or the database cannot do it.
    pub async fn delete(&self, id: Uuid, condition: &VersionCondition, trace: TraceContext) -> Result<(), Error> {
        changed(self.store.delete(id, condition, trace).await?)?;
        self.relay.notify();
        self.reconciler.notify();
        tracing::info!(patient_id = %id, "patient deleted");
        Ok(())
    }
}

/// The patient that an earlier request with this key made; none if there was no such request.
async fn repeated(store: &Store, key: &IdempotencyKey) -> Result<Option<Patient>, Error> {
    match store.find_key(&key.key).await? {
        None => Ok(None),
        Some((fingerprint, _)) if fingerprint != key.fingerprint => Err(Error::KeyReused),
        Some((_, patient_id)) => Ok(Some(store.find(patient_id).await?.ok_or(Error::KeySpent)?)),
    }
}

fn changed<T>(change: Change<T>) -> Result<T, Error> {
    match change {
        Change::Done(value) => Ok(value),
        Change::NotFound => Err(Error::NotFound),
        Change::OtherVersion => Err(Error::OtherVersion),
    }
}

/// Equal for equal data, and for practical purposes for no others.
fn fingerprint(details: &Details) -> Vec<u8> {
    let Details { name, email, address, date_of_birth, registered_date } = details;
    let registered_date = registered_date.map(|date| date.to_string()).unwrap_or_default();
    let mut hash = Sha256::new();
    for field in [name, email, address, &date_of_birth.to_string(), &registered_date] {
        // The length keeps "ab" + "c" apart from "a" + "bc".
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_tells_requests_apart() {
        let date = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap();
        let details = |name: &str, email: &str, registered_date| Details {
            name: name.to_owned(),
            email: email.to_owned(),
            address: String::new(),
            date_of_birth: date,
            registered_date,
        };
        let one = fingerprint(&details("ab", "c", None));
        assert_eq!(one, fingerprint(&details("ab", "c", None)));
        assert_ne!(one, fingerprint(&details("a", "bc", None)));
        assert_ne!(one, fingerprint(&details("ab", "c", Some(date))));
    }
}
