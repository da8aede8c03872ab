//! The databases of the services.

/// The URLs of the databases.
pub(crate) struct Databases {
    pub(crate) patients: String,
    pub(crate) billing: String,
}
