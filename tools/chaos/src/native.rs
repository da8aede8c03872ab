//! Starts a system for this run, as processes on this machine.

use smol::lock::Mutex;
use testbed::{
    Error, Scratch,
    audit::Auditor,
    broker::{Broker, Kind, Size},
    clock::SteppedClock,
    failover::ReplicatedPostgres,
    identities::Identities,
    permissions, ports,
    system::{BackingServices, System},
};

use crate::{component::Component, system::SystemUnderTest};

/// Replicas of patient-service.
const REPLICAS: usize = 3;

/// The name of the component that fails over.
pub(crate) const POSTGRES: &str = "PostgreSQL";

/// Starts the system. The broker is the given one, else Apache Kafka if it can be installed, else Nisshi. `secure`: with
/// identities and TLS, which Nisshi has not.
///
/// # Errors
/// If a component does not start.
pub(crate) async fn start(broker: Option<Kind>, secure: bool) -> Result<SystemUnderTest, Error> {
    let kind = install(broker).await?;
    let scratch = Scratch::new()?;
    let clock = SteppedClock::new(scratch.path())?;
    let mut identities = if secure { Some(Identities::new(&scratch.path().join("identities"))?) } else { None };
    let directory = scratch.path().join("postgres");
    let mut postgres = ReplicatedPostgres::start(&directory, &clock, &scratch, identities.as_ref()).await?;
    if !postgres.has_standby() {
        println!("No pg_basebackup: PostgreSQL has no standby in this run, and does not fail over.");
    }
    for name in ["patients", "billing"] {
        postgres.primary().create_database(name).await?;
    }
    let directory = scratch.path().join("broker");
    let mut broker = match &identities {
        None => Broker::start_on_free_port(kind, &directory, "").await?,
        Some(identities) => {
            let listener = identities.broker_listener();
            Broker::start_secure(kind, &directory, ports::free(), Size::Small, listener).await?
        }
    };
    scratch.guard(broker.process())?;
    let mut backing_services = BackingServices {
        patients_database: postgres.url("patients"),
        billing_database: postgres.url("billing"),
        kafka: broker.address(),
        topic: "patient".to_owned(),
    };
    let extra = [("LOG_LEVEL", "warn")];
    let system = match &mut identities {
        None => System::start(backing_services, REPLICAS, &extra).await?,
        Some(identities) => {
            identities.postgres_port = postgres.port();
            identities.create_databases(postgres.primary()).await?;
            broker.grant(&permissions::of_services()).await?;
            backing_services.patients_database = identities.superuser_url("patients");
            backing_services.billing_database = identities.superuser_url("billing");
            System::start_secure(backing_services, REPLICAS, &extra, identities).await?
        }
    };
    let (auditor, logs) = (Auditor::of(&system), system.directory().to_owned());
    let System { patients, billing, analytics, scratch: service_scratch, .. } = system;
    let clients = patients.iter().map(|service| service.client()).collect();
    // Seeds are reproducible only as long as this order stays.
    let mut components = vec![
        ("billing-service".to_owned(), Component::Service(billing)),
        ("analytics-service".to_owned(), Component::Service(analytics)),
        ("the broker".to_owned(), Component::Broker(broker)),
        (POSTGRES.to_owned(), Component::Postgres(Box::new(postgres))),
    ];
    let replicas = patients.into_iter().enumerate();
    components.extend(replicas.map(|(n, service)| (format!("patient-service {n}"), Component::Service(service))));
    Ok(SystemUnderTest {
        description: format!("{kind}, {REPLICAS} patient-services{}", if secure { ", identities and TLS" } else { "" }),
        components: components.into_iter().map(|(name, component)| (name, Mutex::new(component))).collect(),
        clients,
        fixed_auditor: Some(auditor),
        // Nisshi cannot add partitions, and may lose other topics when one is deleted.
        may_change_topic: kind == Kind::Kafka,
        clock: Some(clock),
        logs: Some(logs),
        scratch,
        _service_scratch: Some(service_scratch),
    })
}

/// Installs the given broker, else Apache Kafka, else Nisshi.
async fn install(kind: Option<Kind>) -> Result<Kind, Error> {
    match kind {
        Some(kind) => kind.install().await.map(|()| kind),
        None if Kind::Kafka.install().await.is_ok() => Ok(Kind::Kafka),
        None => Kind::Nisshi.install().await.map(|()| Kind::Nisshi),
    }
}
