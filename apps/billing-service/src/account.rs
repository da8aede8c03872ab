//! Accounts: whose they are and whether they take charges.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// Whose account it is. Names are for people; the account belongs to the id.
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
    /// Reads the fields of a request.
    ///
    /// # Errors
    /// If the id is no UUID, or a text is empty where it must not be or cannot be stored.
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

/// Reads a patient's id.
///
/// # Errors
/// If it is no UUID.
pub fn parse_patient_id(text: &str) -> Result<Uuid, InvalidField> {
    text.parse().map_err(|_| InvalidField { field: "patient id", why: "must be a UUID" })
}

/// A field of a request that is wrong. It does not repeat the value, which may be personal data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidField {
    /// The field's name.
    pub field: &'static str,
    /// What it must be.
    pub why: &'static str,
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} {}", self.field, self.why)
    }
}

/// Whether an account takes charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Active,
    /// It does not, and never will again.
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
        known.ok_or_else(|| format!("{name:?} is no status of an account"))
    }
}

/// An account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its own id.
    pub id: Uuid,
    /// Whether it takes charges.
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
