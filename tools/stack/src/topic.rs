//! The topics of the system, looked at from outside.

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use config::Value as _;
use kafka::Consumer;

use crate::{Failure, Outcome, settings::Settings};

/// The topic of patient events.
pub(crate) const EVENTS: &str = "patient";
/// The topic of dead letters. Analytics writes to its first partition.
pub(crate) const DEAD_LETTERS: &str = "patient.dlq";

/// Time for the topic of a new system to be made.
const TOPIC_LIMIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How a command of ours reaches Kafka.
pub(crate) fn kafka(settings: &Settings, command: &'static str) -> Outcome<kafka::Settings> {
    Ok(kafka::Settings {
        bootstrap: config::HostPorts::parse(&settings.kafka_address()).map_err(Failure)?,
        deadline: Duration::from_secs(5),
        client_id: command,
    })
}

/// Waits for the topic of a system that has just been started: patient-service is ready before Kafka is.
pub(crate) async fn until_there(kafka: &kafka::Settings) {
    let end = Instant::now() + TOPIC_LIMIT;
    // Whatever else is wrong is told by whoever uses the topic.
    while matches!(kafka::partitions(kafka, EVENTS).await, Err(kafka::Error::UnknownTopic)) && Instant::now() < end {
        smol::Timer::after(POLL_INTERVAL).await;
    }
}

/// A consumer of each partition of the events, with the offsets that there are.
pub(crate) async fn events(kafka: &kafka::Settings) -> Outcome<BTreeMap<i32, (Consumer, Range<i64>)>> {
    let partitions = match kafka::partitions(kafka, EVENTS).await {
        Err(kafka::Error::UnknownTopic) => {
            return Err(Failure("The topic is not there yet: is patient-service running?".to_owned()));
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
