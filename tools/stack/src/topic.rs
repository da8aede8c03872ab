//! The topics of the system, for commands that read them.

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use config::Value as _;
use kafka::Consumer;

use crate::{home, secure::Secure, settings::Settings};

/// The topic of patient events.
pub(crate) const EVENTS: &str = "patient";
/// The topic of dead letters. Analytics writes to its first partition.
pub(crate) const DEAD_LETTERS: &str = "patient.dlq";

/// Time until the topic of a new system exists.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Client settings of a command.
pub(crate) fn kafka(settings: &Settings, command: &'static str) -> Result<kafka::Settings> {
    Ok(kafka::Settings {
        bootstrap: config::HostPorts::parse(&settings.kafka_address()).map_err(anyhow::Error::msg)?,
        deadline: Duration::from_secs(5),
        client_id: command,
        security: match Secure::of_checkout()? {
            None => kafka::Security::default(),
            Some(secure) => secure.kafka_security(home::runs_in_containers()?)?,
        },
    })
}

/// Waits until the topic exists: patient-service is ready before it has created it.
pub(crate) async fn until_exists(kafka: &kafka::Settings) {
    let end = Instant::now() + TOPIC_TIMEOUT;
    // Other errors are reported by the caller's next call.
    while matches!(kafka::partitions(kafka, EVENTS).await, Err(kafka::Error::UnknownTopic)) && Instant::now() < end {
        smol::Timer::after(POLL_INTERVAL).await;
    }
}

/// A consumer for each partition of the events, with the offsets that are on the topic.
pub(crate) async fn events(kafka: &kafka::Settings) -> Result<BTreeMap<i32, (Consumer, Range<i64>)>> {
    let partitions = match kafka::partitions(kafka, EVENTS).await {
        Err(kafka::Error::UnknownTopic) => {
            return Err(anyhow!("The topic does not exist yet: is patient-service running?"));
        }
        result => result?,
    };
    let mut consumers = BTreeMap::new();
    for partition in 0..partitions {
        let mut consumer = Consumer::new(kafka.clone(), EVENTS, partition);
        let offsets = consumer.offsets().await?;
        consumers.insert(partition, (consumer, offsets));
    }
    Ok(consumers)
}
