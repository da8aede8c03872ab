//! The changes that clients know to be committed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

/// The changes for which clients got a 2xx response, and which therefore must not be lost. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    patients: Arc<Mutex<BTreeMap<Uuid, AcknowledgedPatient>>>,
}

/// The acknowledged changes of one patient.
#[derive(Clone, Debug, Default)]
pub(super) struct AcknowledgedPatient {
    /// The newest acknowledged version.
    pub(super) version: i64,
    /// A deletion was sent. It may be committed although its response was lost.
    pub(super) delete_requested: bool,
    pub(super) deleted: bool,
    /// Ledger entries: the amount by which each increases the balance, in minor units.
    pub(super) entries: BTreeMap<String, i64>,
}

impl Acknowledged {
    /// A creation (version 1) or a change (the version in its entity tag) was acknowledged.
    pub fn stored(&self, patient_id: Uuid, version: i64) {
        let mut patients = self.lock();
        let patient = patients.entry(patient_id).or_default();
        patient.version = patient.version.max(version);
    }

    /// A client is about to send a deletion, whose response may be lost.
    pub fn delete_requested(&self, patient_id: Uuid) {
        self.lock().entry(patient_id).or_default().delete_requested = true;
    }

    /// A deletion was acknowledged.
    pub fn deleted(&self, patient_id: Uuid) {
        self.lock().entry(patient_id).or_default().deleted = true;
    }

    /// A transaction was acknowledged. It increases the balance by `amount`, which is negative for a payment.
    pub fn transaction_recorded(&self, patient_id: Uuid, transaction_id: impl Into<String>, amount: i64) {
        self.lock().entry(patient_id).or_default().entries.insert(transaction_id.into(), amount);
    }

    /// How many patients have an acknowledged change.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, AcknowledgedPatient>> {
        self.patients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
