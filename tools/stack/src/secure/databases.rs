//! The databases of the secure system: each belongs to an owner's role, with which its service migrates at its start, and the service
//! works with a role that may change rows and nothing else.

use testbed::roles;

use super::Secure;

/// Each database with the service that it is for.
pub(crate) const ALL: [(&str, &str); 2] = [("patients", "patient-service"), ("billing", "billing-service")];

/// The database of a service.
pub(super) fn of_service(service: &str) -> Option<&'static str> {
    ALL.into_iter().find(|(_, name)| *name == service).map(|(database, _)| database)
}

impl Secure {
    /// The URL of a database for a service, whose role has the service's name.
    pub(crate) fn database_url(&self, database: &str, service: &str) -> String {
        self.postgres_listener().url(database, &self.identity(service), &self.authority(), service)
    }

    /// The URL with which a service migrates its database; none if it has none.
    pub(super) fn owner_url(&self, service: &str) -> Option<String> {
        Some(self.database_url(of_service(service)?, &roles::owner(service)))
    }
}
