//! The use cases. Each change is one transaction; afterwards the relay and the reconciler are notified of its events and tasks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
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
    store::{Change, IdempotencyKey, List, ListedPatient, Store, StoreError, UpdateError, VersionCondition},
};

/// The time zone that is furthest ahead of UTC (Kiritimati).
const MAX_UTC_OFFSET: TimeDelta = TimeDelta::hours(14);

/// The registry of patients.
#[derive(Clone)]
pub struct Registry {
    store: Store,
    billing: Arc<Billing>,
    completed: CompletedTasks,
    relay: RelayWaker,
    reconciler: Arc<Notify>,
}

/// A patient registered by this request, or earlier by the same one.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The patient.
    pub patient: Patient,
    /// The billing account; none if billing has not answered in time.
    pub account: Option<Account>,
    /// Time until the commit.
    pub stored_in: Duration,
    /// Time of the call to billing.
    pub billed_in: Duration,
}

/// Why a use case failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such patient.
    #[error("there is no such patient")]
    NotFound,
    /// Another patient has the email.
    #[error("another patient has this email")]
    EmailTaken,
    /// The patient's version does not meet the precondition.
    #[error("the version of the patient does not meet the precondition")]
    VersionMismatch,
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// The idempotency key was used for this request, and its patient has been deleted since.
    #[error("the patient of this idempotency key has been deleted")]
    PatientOfKeyDeleted,
    /// The idempotency key expired while it was looked up; the request may be repeated.
    #[error("the idempotency key expired while it was looked up")]
    KeyExpired,
    /// The database failed.
    #[error(transparent)]
    Database(#[from] postgres::Error),
}

impl Registry {
    /// A registry of the patients in `store`. `relay` and `reconciler` are notified of new events and tasks; `completed`
    /// receives the tasks that a request has completed itself.
    pub fn new(
        store: Store,
        billing: Arc<Billing>,
        completed: CompletedTasks,
        relay: RelayWaker,
        reconciler: Arc<Notify>,
    ) -> Self {
        Self { store, billing, completed, relay, reconciler }
    }

    /// The latest date that is not in the future: today in UTC+14. A patient may be born and registered there while it is
    /// still yesterday elsewhere.
    pub fn latest_day(&self) -> NaiveDate {
        (Utc::now() + MAX_UTC_OFFSET).date_naive()
    }

    /// Registers a patient. With a key, a repeated request of the same `owner` returns the patient of the first one.
    ///
    /// # Errors
    /// If the email is taken, the key belongs to another request, or the database fails. Not if billing fails: the
    /// reconciler opens the account later.
    pub async fn register(
        &self,
        details: Details,
        key: Option<String>,
        owner: &str,
        trace: TraceContext,
    ) -> Result<Registered, Error> {
        let started = Instant::now();
        let key = key.map(|key| IdempotencyKey { key: owned_key(owner, key), fingerprint: fingerprint(&details) });
        let Details { name, email, address, date_of_birth, registered_date } = details;
        let registered_date = registered_date.unwrap_or_else(|| Utc::now().date_naive());
        let id = Uuid::now_v7();
        let patient = Patient { id, name, email, address, date_of_birth, registered_date, version: 1 };
        let billing_after = self.billing.deadline() + RECONCILE_AFTER;
        let store = self.store.with_shared_deadline();
        let patient = match store.insert(patient.clone(), key.clone(), billing_after, trace).await {
            Ok(event) => {
                self.relay.hand_over(event);
                tracing::info!(patient_id = %patient.id, "patient registered");
                patient
            }
            Err(StoreError::Database(error)) => return Err(Error::Database(error)),
            // Which of the two constraints a repeated request violates first is up to the database.
            Err(conflict @ (StoreError::EmailTaken | StoreError::KeyUsed)) => {
                let repeated = match &key {
                    Some(key) => patient_of_key(&store, key).await?,
                    None => None,
                };
                match (repeated, conflict) {
                    (Some(patient), _) => patient,
                    (None, StoreError::EmailTaken) => return Err(Error::EmailTaken),
                    // The key has expired since the insert failed.
                    (None, _) => return Err(Error::KeyExpired),
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

    /// Finds a patient.
    ///
    /// # Errors
    /// If there is none with this id, or the database fails.
    pub async fn find(&self, id: Uuid) -> Result<Patient, Error> {
        self.store.find(id).await?.ok_or(Error::NotFound)
    }

    /// Lists patients.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list(&self, list: &List) -> Result<Vec<ListedPatient>, Error> {
        Ok(self.store.with_shared_deadline().list(list).await?)
    }

    /// Lists patients and counts all, or all that match the search.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list_and_count(&self, list: &List) -> Result<(Vec<ListedPatient>, i64), Error> {
        let store = self.store.with_shared_deadline();
        Ok((store.list(list).await?, store.count(list.search.as_ref()).await?))
    }

    /// Replaces a patient's data if its version meets the condition.
    ///
    /// # Errors
    /// If there is no such patient, its version does not meet the condition, the email is taken, or the database fails.
    pub async fn update(
        &self,
        id: Uuid,
        condition: &VersionCondition,
        details: Details,
        trace: TraceContext,
    ) -> Result<Patient, Error> {
        let change = self.store.update(id, condition, &details, trace).await.map_err(|error| match error {
            UpdateError::EmailTaken => Error::EmailTaken,
            UpdateError::Database(error) => Error::Database(error),
        });
        let patient = into_result(change?)?;
        self.relay.notify();
        tracing::info!(patient_id = %id, version = patient.version, "patient updated");
        Ok(patient)
    }

    /// Deletes a patient if its version meets the condition. The reconciler closes its billing account.
    ///
    /// # Errors
    /// If there is no such patient, its version does not meet the condition, or the database fails.
    pub async fn delete(&self, id: Uuid, condition: &VersionCondition, trace: TraceContext) -> Result<(), Error> {
        into_result(self.store.delete(id, condition, trace).await?)?;
        self.relay.notify();
        self.reconciler.notify();
        tracing::info!(patient_id = %id, "patient deleted");
        Ok(())
    }
}

/// The patient of an earlier request with this key; none if there was no such request.
async fn patient_of_key(store: &Store, key: &IdempotencyKey) -> Result<Option<Patient>, Error> {
    match store.find_key(&key.key).await? {
        None => Ok(None),
        Some((fingerprint, _)) if fingerprint != key.fingerprint => Err(Error::KeyReused),
        Some((_, patient_id)) => Ok(Some(store.find(patient_id).await?.ok_or(Error::PatientOfKeyDeleted)?)),
    }
}

fn into_result<T>(change: Change<T>) -> Result<T, Error> {
    match change {
        Change::Done(value) => Ok(value),
        Change::NotFound => Err(Error::NotFound),
        Change::VersionMismatch => Err(Error::VersionMismatch),
    }
}

/// A key as it is stored: the key itself if callers are not identified, else the SHA-256 of its owner, a space and the key. No key
/// contains a space, so keys of different owners differ, and the table needs no column for the owner.
fn owned_key(owner: &str, key: String) -> String {
    if owner.is_empty() { key } else { format!("{} {key}", URL_SAFE_NO_PAD.encode(Sha256::digest(owner))) }
}

/// Identifies a request by its data (SHA-256).
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
    fn a_key_belongs_to_its_owner() {
        assert_eq!(owned_key("", "k".to_owned()), "k", "as it was before callers were identified");
        let keys = ["", "ann", "bob"].map(|owner| owned_key(owner, "k".to_owned()));
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[1].len() == 43 + 1 + 1, "{keys:?}");
    }

    #[test]
    fn fingerprints_distinguish_requests() {
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
