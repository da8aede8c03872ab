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
    service::Service,
    system::{BackingServices, System},
};

use crate::{component::Component, system::SystemUnderTest};

/// Replicas of patient-service.
const REPLICAS: usize = 3;

/// The name of the component that is, or the first of those that are, members of the consumer group.
const ANALYTICS: &str = "analytics-service";
/// The name of the component that fails over.
pub(crate) const POSTGRES: &str = "PostgreSQL";

/// The shortest session timeout that brokers allow by default.
const SESSION_TIMEOUT: &str = "6s";

/// Starts the system. The broker is the given one, else Apache Kafka if it can be installed, else Nisshi. `secure`: with
/// identities and TLS, which Nisshi has not. Several analytics-services are `members` of one consumer group, with so many
/// `standbys` of each partition.
///
/// # Errors
/// If a component does not start.
pub(crate) async fn start(
    broker: Option<Kind>,
    secure: bool,
    (members, standbys): (usize, usize),
) -> Result<SystemUnderTest, Error> {
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
    let mut extra = vec![("LOG_LEVEL", "warn")];
    // So that each has one, and some move when a member comes or goes.
    let (partitions, copies) = ((2 * members).to_string(), standbys.to_string());
    if members > 1 {
        extra.extend([
            ("PARTITIONS", "group"),
            ("KAFKA_SESSION_TIMEOUT", SESSION_TIMEOUT),
            ("KAFKA_TOPIC_PARTITIONS", &partitions),
            ("STANDBYS", &copies),
        ]);
    }
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
    let mut others = Vec::new();
    for number in 1..members {
        let mut service = system.another_analytics(number).start()?;
        scratch.guard(service.process())?;
        service.until_ready().await?;
        others.push(service);
    }
    let (mut auditor, logs) = (Auditor::of(&system), system.directory().to_owned());
    auditor.analytics.extend(others.iter().map(Service::client));
    let System { patients, billing, analytics, scratch: service_scratch, .. } = system;
    let clients = patients.iter().map(|service| service.client()).collect();
    // Seeds are reproducible only as long as this order stays.
    let mut components = vec![
        ("billing-service".to_owned(), Component::Service(billing)),
        (ANALYTICS.to_owned(), Component::Service(analytics)),
        ("the broker".to_owned(), Component::Broker(broker)),
        (POSTGRES.to_owned(), Component::Postgres(Box::new(postgres))),
    ];
    let replicas = patients.into_iter().enumerate();
    components.extend(replicas.map(|(n, service)| (format!("patient-service {n}"), Component::Service(service))));
    let first_member = components.iter().position(|(name, _)| name == ANALYTICS).filter(|_| members > 1);
    let other_members = components.len()..components.len() + others.len();
    let others = others.into_iter().zip(1..);
    components.extend(others.map(|(service, n)| (format!("{ANALYTICS} {n}"), Component::Service(service))));
    let group = match (members, standbys) {
        (1, _) => String::new(),
        (_, 0) => format!(", {members} analytics-services"),
        _ => format!(", {members} analytics-services, {standbys} standbys"),
    };
    let identities = if secure { ", identities and TLS" } else { "" };
    Ok(SystemUnderTest {
        description: format!("{kind}, {REPLICAS} patient-services{group}{identities}"),
        members: first_member.into_iter().chain(other_members).collect(),
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
