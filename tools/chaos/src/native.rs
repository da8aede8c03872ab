//! Starts a system for this run, as processes on this machine.

use smol::lock::Mutex;
use testbed::{
    Error, Scratch,
    audit::Auditor,
    broker::{Broker, Kind},
    clock::SteppedClock,
    failover::ReplicatedPostgres,
    system::{BackingServices, System},
};

use crate::{component::Component, system::SystemUnderTest};

/// Replicas of patient-service.
const REPLICAS: usize = 3;

/// The name of the component that fails over.
pub(crate) const POSTGRES: &str = "PostgreSQL";

/// Starts the system. The broker is the given one, else Apache Kafka if it can be installed, else Nisshi.
///
/// # Errors
/// If a component does not start.
pub(crate) async fn start(broker: Option<Kind>) -> Result<SystemUnderTest, Error> {
    let kind = install(broker).await?;
    let scratch = Scratch::new()?;
    let clock = SteppedClock::new(scratch.path())?;
    let mut postgres = ReplicatedPostgres::start(&scratch.path().join("postgres"), &clock, &scratch).await?;
    if !postgres.has_standby() {
        println!("No pg_basebackup: PostgreSQL has no standby in this run, and does not fail over.");
    }
    for name in ["patients", "billing"] {
        postgres.primary().create_database(name).await?;
    }
    let mut broker = Broker::start_on_free_port(kind, &scratch.path().join("broker"), "").await?;
    scratch.guard(broker.process())?;
    let backing_services = BackingServices {
        patients_database: postgres.url("patients"),
        billing_database: postgres.url("billing"),
        kafka: broker.address(),
        topic: "patient".to_owned(),
    };
    let system = System::start(backing_services, REPLICAS, &[("LOG_LEVEL", "warn")]).await?;
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
        description: format!("{kind}, {REPLICAS} patient-services"),
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
