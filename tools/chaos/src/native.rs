//! A system of our own, as processes on this machine.

use smol::lock::Mutex;
use testbed::{
    Scratch, StartError,
    audit::Places,
    broker::{Broker, Kind},
    clock::SteppedClock,
    failover::Replicated,
    system::{Ground, System},
};

use crate::{parts::Part, system::SystemUnderTest};

/// Replicas of patient-service.
const REPLICAS: usize = 3;

/// The name of the part that fails over.
pub(crate) const POSTGRES: &str = "PostgreSQL";

/// Starts it. Without a wish, the broker is Apache Kafka if it can be had, else Nisshi.
///
/// # Errors
/// If a part does not come up.
pub(crate) async fn start(broker: Option<Kind>) -> Result<SystemUnderTest, StartError> {
    let kind = install(broker).await?;
    let scratch = Scratch::new()?;
    let clock = SteppedClock::new(scratch.path())?;
    let mut postgres = Replicated::start(&scratch.path().join("postgres"), &clock, &scratch).await?;
    if !postgres.has_standby() {
        println!("No pg_basebackup: PostgreSQL has no standby in this run, and does not fail over.");
    }
    for name in ["patients", "billing"] {
        postgres.primary().create_database(name).await?;
    }
    let mut broker = Broker::start_anywhere(kind, &scratch.path().join("broker"), "").await?;
    scratch.guard(broker.process())?;
    let ground = Ground {
        patients_database: postgres.url("patients"),
        billing_database: postgres.url("billing"),
        kafka: broker.address(),
        topic: "patient".to_owned(),
    };
    let system = System::start(ground, REPLICAS, &[("LOG_LEVEL", "warn")]).await?;
    let (places, logs) = (Places::of(&system), system.directory().to_owned());
    let System { patients, billing, analytics, scratch: kept, .. } = system;
    let clients = patients.iter().map(|service| service.client()).collect();
    // A change of the order would make every noted seed worthless.
    let mut parts = vec![
        ("billing-service".to_owned(), Part::Service(billing)),
        ("analytics-service".to_owned(), Part::Service(analytics)),
        ("the broker".to_owned(), Part::Broker(broker)),
        (POSTGRES.to_owned(), Part::Postgres(Box::new(postgres))),
    ];
    let replicas = patients.into_iter().enumerate();
    parts.extend(replicas.map(|(n, service)| (format!("patient-service {n}"), Part::Service(service))));
    Ok(SystemUnderTest {
        description: format!("{kind}, {REPLICAS} patient-services"),
        parts: parts.into_iter().map(|(name, part)| (name, Mutex::new(part))).collect(),
        clients,
        fixed: Some(places),
        // Nisshi adds no partitions, and may lose other topics when one is deleted.
        topic_is_ours: kind == Kind::Kafka,
        clock: Some(clock),
        logs: Some(logs),
        scratch,
        _kept: Some(kept),
    })
}

/// Installs the broker: the given one, else Apache Kafka if it can be had, else Nisshi.
async fn install(wanted: Option<Kind>) -> Result<Kind, StartError> {
    match wanted {
        Some(kind) => kind.install().await.map(|()| kind),
        None if Kind::Kafka.install().await.is_ok() => Ok(Kind::Kafka),
        None => Kind::Nisshi.install().await.map(|()| Kind::Nisshi),
    }
}
