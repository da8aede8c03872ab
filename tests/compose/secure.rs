//! What the secure system promises beyond the others.

use std::collections::BTreeSet;

use crate::files::{secure, services, single, strings};

/// The networks of a service.
fn networks(name: &str) -> BTreeSet<String> {
    strings(&secure()["services"][name]["networks"]).into_iter().map(str::to_owned).collect()
}

#[test]
fn each_container_has_its_own_certificates_and_data_of_the_secure_system_alone() {
    let system = secure();
    for (name, service) in services(&system).filter(|(_, service)| service.get("profiles").is_none()) {
        let volumes = strings(&service["volumes"]);
        let folder = format!("./deploy/secure/{name}:/etc/tls:ro");
        assert!(volumes.contains(&folder.as_str()), "{name}: {volumes:?}");
        assert!(!volumes.iter().any(|volume| volume.contains("/etc/tls") && *volume != folder), "{name}: {volumes:?}");
    }
    let data = |system: &serde_json::Value| -> BTreeSet<String> {
        let volumes = services(system).flat_map(|(_, service)| strings(&service["volumes"]));
        let named = volumes.filter(|volume| !volume.starts_with("./"));
        named.map(|volume| volume.split(':').next().unwrap().to_owned()).collect()
    };
    let (open, secure) = (data(&single()), data(&system));
    assert!(secure.len() >= 5 && open.is_disjoint(&secure), "{open:?} {secure:?}");
}

#[test]
fn a_database_is_reached_by_its_service_alone_and_the_broker_by_those_that_use_it() {
    let system = secure();
    let names: Vec<_> = services(&system).map(|(name, _)| name.as_str()).collect();
    let reached_by = |name: &str| -> BTreeSet<&str> {
        let own = networks(name);
        names.iter().copied().filter(|other| *other != name && !networks(other).is_disjoint(&own)).collect()
    };
    assert_eq!(reached_by("patient-db"), ["patient-service"].into());
    assert_eq!(reached_by("billing-db"), ["billing-service"].into());
    assert_eq!(reached_by("kafka"), ["analytics-service", "patient-service"].into());
    for network in ["patient-db", "billing-db"] {
        assert_eq!(system["networks"][network]["internal"], true, "{network}");
    }
}

#[test]
fn kafka_speaks_plaintext_on_its_own_loopback_alone_and_postgresql_nowhere() {
    let system = secure();
    let kafka = &system["services"]["kafka"]["environment"];
    let pairs = |name: &str| -> Vec<(String, String)> {
        let list = kafka[name].as_str().unwrap().split(',');
        list.map(|pair| pair.split_once(':').unwrap()).map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let listeners = pairs("KAFKA_LISTENERS");
    for (name, protocol) in pairs("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP") {
        let (_, address) = listeners.iter().find(|(listener, _)| *listener == name).unwrap();
        let is_loopback = address.starts_with("//127.0.0.1:");
        assert_eq!(protocol, if is_loopback { "PLAINTEXT" } else { "SASL_SSL" }, "{name} {address}");
    }
    assert_eq!(kafka["KAFKA_SSL_CLIENT_AUTH"], "required");
    let rules = crate::files::text("deploy/secure/pg_hba.conf");
    let hosts: Vec<_> = rules.lines().filter(|line| line.starts_with("host")).collect();
    assert!(hosts.len() == 1 && hosts[0].starts_with("hostssl") && hosts[0].ends_with(" cert"), "{rules}");
    for database in ["patient-db", "billing-db"] {
        let command = strings(&system["services"][database]["command"]);
        assert!(command.contains(&"ssl=on") && command.contains(&"hba_file=/etc/postgresql/pg_hba.conf"), "{database}");
    }
}

#[test]
fn a_service_has_no_more_rights_than_it_needs_in_its_database_and_on_the_broker() {
    let system = secure();
    for (database, service) in [("patient-db", "patient-service"), ("billing-db", "billing-service")] {
        let container = &system["services"][database];
        assert_eq!(container["environment"]["SERVICE_ROLE"], service);
        assert_eq!(strings(&container["entrypoint"]).last(), Some(&"/etc/postgresql/database.sh"));
        let mounted: Vec<_> =
            strings(&container["volumes"]).into_iter().filter(|one| one.contains("/etc/postgresql/")).collect();
        assert_eq!(mounted.len(), 3, "{mounted:?}");
        for one in mounted {
            let file = one.split(':').next().unwrap();
            assert!(!crate::files::text(file).is_empty(), "{file}");
        }
    }
    // The script replaces each placeholder of the statements.
    let (script, statements) =
        (crate::files::text("deploy/secure/database.sh"), crate::files::text("deploy/secure/roles.sql"));
    for placeholder in statements.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()) {
        assert!(script.contains(&format!("s/{{{placeholder}}}/")), "{placeholder}");
    }
    let kafka = &system["services"]["kafka"]["environment"];
    assert!(kafka["KAFKA_AUTHORIZER_CLASS_NAME"].as_str().unwrap().ends_with("StandardAuthorizer"));
    assert_eq!(kafka["KAFKA_SUPER_USERS"], "User:stack;User:ANONYMOUS", "the stack, and the loopback of the container");
}
