//! What the services need on a broker with access control lists.

use kafka::{Operation, Permission, Resource};
use serde_json::Value as Json;

/// The permissions of each service, with which `just up --secure` starts the broker. Those of Kubernetes are the same, but that
/// topics are created there by Strimzi.
const FILE: &str = include_str!("../../../deploy/secure/kafka-permissions.json");

/// The permissions of each service, whose user has the service's name.
///
/// # Panics
/// If the file of this repository is wrong, which a test of this module notices.
pub fn of_services() -> Vec<Permission> {
    let rows: Vec<Json> = serde_json::from_str(FILE).expect("a list");
    let row = |row: Json| {
        let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let (user, name) = (text("user"), text("name"));
        let resource = match &*text("resource") {
            "topic" => Resource::Topic,
            "group" => Resource::Group,
            other => panic!("{other:?} is no resource"),
        };
        let operations = row["operations"].as_array().cloned().unwrap_or_default();
        let permission = move |operation: Json| {
            let operation = match operation.as_str().unwrap_or_default() {
                "Create" => Operation::Create,
                "Describe" => Operation::Describe,
                "DescribeConfigs" => Operation::DescribeConfigs,
                "Read" => Operation::Read,
                "Write" => Operation::Write,
                other => panic!("{other:?} is no operation"),
            };
            Permission { user: user.clone(), resource, name: name.clone(), operation }
        };
        operations.into_iter().map(permission).collect::<Vec<_>>()
    };
    rows.into_iter().flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read() {
        let all = of_services();
        assert_eq!(all.len(), 10);
        assert!(all.iter().all(|one| !one.user.is_empty() && !one.name.is_empty()), "{all:?}");
    }
}
