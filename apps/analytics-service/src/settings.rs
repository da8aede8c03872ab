use std::path::PathBuf;

use config::{Reader, Value};

/// The settings of the service.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The HTTP server.
    pub http: web::Settings,
    /// The Kafka client.
    pub kafka: kafka::Settings,
    /// The topic of patient events.
    pub topic: String,
    /// The dead letter topic.
    pub dead_letter_topic: String,
    /// The consumer group to which the progress is committed.
    pub group: ConsumerGroup,
    /// The partitions to read.
    pub assignment: Assignment,
    /// The file of the state.
    pub state: PathBuf,
    /// What to do when the next record does not exist any more.
    pub on_offset_loss: OnOffsetLoss,
    /// The exporter of traces.
    pub otlp: otlp::Settings,
}

impl Settings {
    /// Reads every setting.
    pub fn read(reader: &mut Reader) -> Self {
        let http = web::Settings::read(reader, "4002");
        let kafka = kafka::Settings::read(reader, "analytics-service");
        let topic = reader.variable(&["KAFKA_TOPIC"], "topic of patient events").or("patient");
        let dead_letter_topic = reader.variable(&["KAFKA_DEAD_LETTER_TOPIC"], "dead letter topic").or("patient.dlq");
        let about = "consumer group that shows the progress; none commits it to none";
        let group = reader.variable(&["KAFKA_CONSUMER_GROUP"], about).or("analytics-service");
        let assignment = reader.variable(&["PARTITIONS"], "partitions that this instance reads").or("all");
        let state: String = reader.variable(&["STATE_FILE"], "file of the state").or("analytics.sqlite");
        let about = "what to do when records were deleted before they were read, or the topic was recreated";
        let on_offset_loss = reader.variable(&["ON_OFFSET_LOSS"], about).or("halt");
        let otlp = otlp::Settings::read(reader, "analytics-service");
        Self { http, kafka, topic, dead_letter_topic, group, assignment, state: state.into(), on_offset_loss, otlp }
    }
}

/// The consumer group to which the progress is committed, if to any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroup(pub Option<String>);

impl Value for ConsumerGroup {
    const EXPECTED: &'static str = "the name of a group, or none";

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self((text != "none").then(|| text.to_owned())))
    }
}

/// The partitions that an instance reads. Each partition must belong to exactly one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// All partitions.
    All,
    /// These partitions.
    Listed(Vec<i32>),
    /// Each `replicas`-th partition from `ordinal` on: ordinal and size of a StatefulSet.
    Share {
        /// The ordinal, from 0.
        ordinal: i32,
        /// The number of instances.
        replicas: i32,
    },
}

impl Assignment {
    /// The partitions of this instance, of a topic with `count` partitions.
    pub fn partitions(&self, count: i32) -> Vec<i32> {
        match self {
            Self::All => (0..count).collect(),
            Self::Listed(partitions) => partitions.clone(),
            Self::Share { ordinal, replicas } => {
                (0..count).filter(|partition| partition % replicas == *ordinal).collect()
            }
        }
    }
}

impl Value for Assignment {
    const EXPECTED: &'static str = "all, partitions such as 0,2, or an ordinal and the number of replicas such as 0/3";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let number = |text: &str| text.trim().parse::<i32>().ok().filter(|number| *number >= 0);
        if let Some((ordinal, replicas)) = text.split_once('/') {
            let share = number(ordinal).zip(number(replicas));
            return match share {
                Some((ordinal, replicas)) if ordinal < replicas => Ok(Self::Share { ordinal, replicas }),
                Some(_) => Err("the ordinal, counted from 0, is not below the number of replicas".to_owned()),
                None => Err("it is no pair of numbers".to_owned()),
            };
        }
        let listed: Option<Vec<i32>> = text.split(',').map(number).collect();
        listed.map(Self::Listed).ok_or_else(|| "a partition is a number from 0".to_owned())
    }
}

/// What to do when the next record does not exist any more: retention deleted it, or the topic was recreated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOffsetLoss {
    /// Halt the partition and report it until an operator acts.
    Halt,
    /// Resume at the earliest offset.
    Continue,
}

impl Value for OnOffsetLoss {
    const EXPECTED: &'static str = "halt or continue";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "halt" => Ok(Self::Halt),
            "continue" => Ok(Self::Continue),
            _ => Err("it is neither".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_belongs_to_one_share() {
        let share = |text| Assignment::parse(text).unwrap().partitions(7);
        assert_eq!(share("all"), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(share("4,2"), [4, 2]);
        assert_eq!([share("0/3"), share("1/3"), share("2/3")], [vec![0, 3, 6], vec![1, 4], vec![2, 5]]);
        for wrong in ["", "some", "3/3", "-1/3", "1/", "0,,1", "0,-1", "1/0"] {
            assert!(Assignment::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
