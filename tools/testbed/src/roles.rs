//! The two roles of a service's database: its owner, which migrates, and the service, which reads and writes rows.

/// What a superuser executes in a database; it can be repeated.
const STATEMENTS: &str = include_str!("../../../deploy/secure/roles.sql");

/// The name of the role that owns the database of a service.
pub fn owner(service: &str) -> String {
    format!("{service}-owner")
}

/// The statements by which a database belongs to [`owner`], and the role with the name of the service works with it.
pub fn statements(database: &str, service: &str) -> String {
    STATEMENTS.replace("{database}", database).replace("{service}", service).replace("{owner}", &owner(service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_placeholder_is_left() {
        let statements = statements("patients", "patient-service");
        assert!(!statements.contains(['{', '}']), "{statements}");
        assert!(statements.contains("CREATE ROLE \"patient-service-owner\" LOGIN"), "{statements}");
    }
}
