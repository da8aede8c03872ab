//! Finds patients by id. Concurrent reads share a statement.

use std::collections::HashMap;

use postgres::{BatchStatement, Database, Error, query};
use uuid::Uuid;

use super::patient;
use crate::patient::Patient;

/// Finds patients by their ids.
pub(super) enum Find {}

impl BatchStatement for Find {
    type Request = Uuid;
    type Response = Option<Patient>;
    const NAME: &'static str = "find patient";
    const MAX_REQUESTS: usize = 256;

    async fn execute(database: &Database, ids: &[Uuid]) -> Result<Vec<Option<Patient>>, Error> {
        let find = database.read(async |connection| {
            let rows = query(
                "-- find patients
                SELECT id, name, email, address, date_of_birth, registered_date, version FROM patients WHERE id = ANY($1)",
            )
            .bind(ids)
            .fetch_all(connection)
            .await?;
            rows.iter().map(|row| patient(row).map(|patient| (patient.id, patient))).collect()
        });
        let patients: HashMap<Uuid, Patient> = find.await?;
        Ok(ids.iter().map(|id| patients.get(id).cloned()).collect())
    }
}
