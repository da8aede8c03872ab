//! Accounts: their holder and status.

use std::str::FromStr;

use uuid::Uuid;

/// The holder of an account, identified by the patient's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The patient.
    pub patient_id: Uuid,
    /// The patient's name when the account was opened.
    pub name: String,
    /// The patient's email when the account was opened.
    pub email: String,
}

impl Holder {
    /// Validates the fields of a request.
    ///
    /// # Errors
    /// If the id is not a UUID, the name is empty, or a text contains NUL.
    pub fn parse(patient_id: &str, name: String, email: String) -> Result<Self, InvalidField> {
        let patient_id = parse_patient_id(patient_id)?;
        if name.trim().is_empty() {
            return Err(InvalidField { field: "name", why: "must not be empty" });
        }
        for (field, text) in [("name", &name), ("email", &email)] {
            if text.contains('\0') {
                return Err(InvalidField { field, why: "must not contain the NUL character" });
            }
        }
        Ok(Self { patient_id, name, email })
    }
}

/// Parses a patient's id.
///
/// # Errors
/// If it is not a UUID.
pub fn parse_patient_id(text: &str) -> Result<Uuid, InvalidField> {
    text.parse().map_err(|_| InvalidField { field: "patient id", why: "must be a UUID" })
}

/// An invalid field of a request. It does not contain the value, which may be personal data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {field} {why}")]
pub struct InvalidField {
    /// The field's name.
    pub field: &'static str,
    /// What it must be.
    pub why: &'static str,
}

/// Whether an account accepts charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It accepts charges.
    Active,
    /// It accepts payments and refunds only, for ever.
    Closed,
}

impl Status {
    /// Its name on the wire and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Closed => "CLOSED",
        }
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = [Self::Active, Self::Closed].into_iter().find(|status| status.name() == name);
        known.ok_or_else(|| format!("{name:?} is not a status of an account"))
    }
}

/// An account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its id.
    pub id: Uuid,
    /// Whether it accepts charges.
    pub status: Status,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(patient_id: &str, name: &str) -> Result<Holder, InvalidField> {
        Holder::parse(patient_id, name.to_owned(), "jane@example.org".to_owned())
    }

    #[test]
    fn a_holder_has_an_id_and_a_name() {
        let id = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736";
        assert_eq!(parse(id, "Jane").unwrap().patient_id.to_string(), id);
        assert_eq!(parse("42", "Jane").unwrap_err().to_string(), "the patient id must be a UUID");
        assert_eq!(parse(id, " ").unwrap_err().field, "name");
        assert_eq!(parse(id, "Ja\0ne").unwrap_err().field, "name");
    }
}
