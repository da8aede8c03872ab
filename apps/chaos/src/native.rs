//! A system of our own, as processes on this machine.

use smol::lock::Mutex;
use testbed::{
    StartError,
    audit::Places,
    broker::Kind,
    system::{OwnGround, System},
};

use crate::{parts::Part, subject::Subject};

/// Replicas of patient-service.
const REPLICAS: usize = 3;

/// Starts it. Without a wish, the broker is Apache Kafka if it can be had, else Nisshi.
///
/// # Errors
/// If a part does not come up.
pub(crate) async fn start(broker: Option<Kind>) -> Result<Subject, StartError> {
    let kind = had(broker).await?;
    let own = OwnGround::start(kind).await?;
    let system = System::start(own.ground(), REPLICAS, &[("LOG_LEVEL", "warn")]).await?;
    let (places, logs) = (Places::of(&system), system.directory().to_owned());
    let OwnGround { cluster, clock, broker, scratch } = own;
    let System { patients, billing, analytics, scratch: kept, .. } = system;
    let clients = patients.iter().map(|service| service.client()).collect();
    // A change of the order would make every noted seed worthless.
    let mut parts = vec![
        ("billing-service".to_owned(), Part::Service(billing)),
        ("analytics-service".to_owned(), Part::Service(analytics)),
        ("the broker".to_owned(), Part::Broker(broker)),
        ("PostgreSQL".to_owned(), Part::Postgres(cluster)),
    ];
    let replicas = patients.into_iter().enumerate();
    parts.extend(replicas.map(|(n, service)| (format!("patient-service {n}"), Part::Service(service))));
    Ok(Subject {
        what: format!("{kind}, {REPLICAS} patient-services"),
        parts: parts.into_iter().map(|(name, part)| (name, Mutex::new(part))).collect(),
        clients,
        fixed: Some(places),
        clock: Some(clock),
        logs: Some(logs),
        scratch,
        _kept: Some(kept),
    })
}

/// The broker to use, installed.
async fn had(wanted: Option<Kind>) -> Result<Kind, StartError> {
    match wanted {
        Some(kind) => kind.install().await.map(|()| kind),
        None if Kind::Kafka.install().await.is_ok() => Ok(Kind::Kafka),
        None => Kind::Nisshi.install().await.map(|()| Kind::Nisshi),
    }
}
