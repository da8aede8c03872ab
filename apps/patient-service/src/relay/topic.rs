//! The configuration of the topic.
//!
//! Each event has all that a consumer counts, so the last event of each patient is enough: compaction deletes the others, with
//! the names and emails of patients who were deleted ([decision 60](../../../../docs/decisions/0060-count-from-versions.md)).

use std::collections::BTreeMap;

use config::Value;

/// The configuration of a compacted topic. An event stays for a day although a later one of its patient came, so that
/// consumers that are up, or down for less, see each change. After a week it is deleted.
const COMPACTED: [(&str, &str); 3] =
    [("cleanup.policy", "compact"), ("min.compaction.lag.ms", "86400000"), ("max.compaction.lag.ms", "604800000")];

/// What brokers delete of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// Events of patients that have a later one. Brokers accept no record without a key.
    Compact,
    /// What the brokers' retention says.
    Delete,
}

impl CleanupPolicy {
    /// The configuration of a topic that is created.
    pub(super) fn configuration(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Compact => &COMPACTED,
            Self::Delete => &[],
        }
    }

    /// Compares the configuration of an existing topic, which is left as it is, and logs differences. A broker may not return a
    /// configuration (Nisshi); then there is nothing to compare.
    pub(super) async fn check(self, kafka: &kafka::Settings, topic: &str) {
        let expected = self.configuration();
        if expected.is_empty() {
            return;
        }
        let names: Vec<_> = expected.iter().map(|(name, _)| *name).collect();
        match kafka::topic_configuration(kafka, topic, &names).await {
            Ok(found) => {
                let found = differences(expected, &found);
                if !found.is_empty() {
                    let expected = expected.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
                    tracing::warn!(
                        topic,
                        found = found.join(","),
                        expected = expected.join(","),
                        "the topic exists with another configuration: it may lose events that nobody has read, grow with every \
                         event, or keep the names of deleted patients; change it with kafka-configs.sh, or set \
                         KAFKA_TOPIC_CLEANUP_POLICY=delete"
                    );
                }
            }
            Err(error) => tracing::info!(topic, %error, "the configuration of the topic cannot be read"),
        }
    }
}

/// The settings that the broker returned and that differ.
fn differences(expected: &[(&str, &str)], found: &BTreeMap<String, String>) -> Vec<String> {
    let differs = |(name, value): &(&str, &str)| {
        let found = found.get(*name).filter(|found| found.as_str() != *value)?;
        Some(format!("{name}={found}"))
    };
    expected.iter().filter_map(differs).collect()
}

impl Value for CleanupPolicy {
    const EXPECTED: &'static str = "compact or delete";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "compact" => Ok(Self::Compact),
            "delete" => Ok(Self::Delete),
            _ => Err("it is another value".to_owned()),
        }
    }
}
