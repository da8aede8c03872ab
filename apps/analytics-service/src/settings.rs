use std::{net::SocketAddr, path::PathBuf, time::Duration};

use config::{HostPort, Reader, Value};

use crate::member_client::MemberSettings;

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
    /// The consumer group to which the progress is committed, and of which the instance is a member if it assigns the partitions.
    pub group: ConsumerGroup,
    /// What a member of the group needs.
    pub membership: MembershipSettings,
    /// The partitions to read.
    pub assignment: Assignment,
    /// The other instances, if they are listed.
    pub members: MemberSettings,
    /// The file of the state.
    pub state: PathBuf,
    /// What to do when the next record does not exist any more.
    pub on_offset_loss: OnOffsetLoss,
    /// The exporter of spans, metrics and log lines.
    pub otlp: otlp::Settings,
}

impl Settings {
    /// Reads every setting.
    pub fn read(reader: &mut Reader) -> Self {
        let http = web::Settings::read(reader, "4002");
        let kafka = kafka::Settings::read(reader, "analytics-service");
        let topic: String = reader.variable(&["KAFKA_TOPIC"], "topic of patient events").or("patient");
        let dead_letter_topic: String =
            reader.variable(&["KAFKA_DEAD_LETTER_TOPIC"], "dead letter topic").or("patient.dlq");
        if dead_letter_topic == topic {
            let why = "each dead letter would be read as an event, and make another one";
            reader.reject("KAFKA_DEAD_LETTER_TOPIC", "another topic than KAFKA_TOPIC", why);
        }
        let about = "consumer group to which the progress is committed, and which assigns the partitions with PARTITIONS=group; none: no progress is committed";
        let group = reader.variable(&["KAFKA_CONSUMER_GROUP"], about).or("analytics-service");
        let assignment = reader.variable(&["PARTITIONS"], "partitions that this instance reads").or("all");
        let membership = MembershipSettings::read(reader, http.address, (&group, &assignment), kafka.deadline);
        let members = MemberSettings::read(reader, http.tls.is_some(), assignment == Assignment::Group);
        let state: String = reader.variable(&["STATE_FILE"], "file of the state").or("analytics.sqlite");
        let about = "what to do when records were deleted before they were read, the topic was recreated, or its log was \
                     truncated";
        let on_offset_loss = reader.variable(&["ON_OFFSET_LOSS"], about).or("halt");
        let otlp = otlp::Settings::read(reader, "analytics-service");
        Self {
            http,
            kafka,
            topic,
            dead_letter_topic,
            group,
            membership,
            assignment,
            members,
            state: state.into(),
            on_offset_loss,
            otlp,
        }
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

/// What an instance needs to be a member of the consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipSettings {
    /// With an instance id, a restart moves no partition.
    pub instance_id: Option<String>,
    /// Without a sign of life for so long, the partitions go to other instances.
    pub session_timeout: Duration,
    /// The copies of each partition on other members.
    pub standbys: Standbys,
    /// Where other instances reach the HTTP server; none if it is the address that it listens on.
    pub advertised: Option<HostPort>,
}

impl MembershipSettings {
    fn read(
        reader: &mut Reader,
        listening: SocketAddr,
        (group, assignment): (&ConsumerGroup, &Assignment),
        deadline: Duration,
    ) -> Self {
        let is_member = *assignment == Assignment::Group;
        let about = "with PARTITIONS=group, the name of this instance in the consumer group: with one, a restart moves no partition";
        let instance_id = reader.variable(&["KAFKA_GROUP_INSTANCE_ID"], about).used_if(is_member).optional();
        let about = "with PARTITIONS=group, time without a heartbeat after which the partitions go to other instances";
        let session_timeout = reader.variable(&["KAFKA_SESSION_TIMEOUT"], about).used_if(is_member).or("15s");
        let about = "with PARTITIONS=group, copies of each partition that other instances keep, of which one goes on if its own dies";
        let standbys = reader.variable(&["STANDBYS"], about).used_if(is_member).or("0");
        let about = "with PARTITIONS=group, host and port where other instances reach this one";
        let advertised: Option<HostPort> = reader.variable(&["ADVERTISED_HTTP"], about).used_if(is_member).optional();
        if is_member && group.0.is_none() {
            reader.reject("KAFKA_CONSUMER_GROUP", ConsumerGroup::EXPECTED, "PARTITIONS=group needs a group");
        }
        if is_member && deadline >= session_timeout {
            let expected = "less than KAFKA_SESSION_TIMEOUT";
            let why = "one call without an answer would cost the instance its partitions";
            reader.reject("KAFKA_DEADLINE", expected, why);
        }
        if is_member && advertised.is_none() && listening.ip().is_unspecified() {
            let why = "it is not set, and SERVER_ADDRESS is no address that other instances could use";
            reader.reject("ADVERTISED_HTTP", HostPort::EXPECTED, why);
        }
        Self { instance_id, session_timeout, standbys, advertised }
    }
}

/// A number of copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standbys(pub usize);

impl Value for Standbys {
    const EXPECTED: &'static str = "a number from 0 to 9";

    fn parse(text: &str) -> Result<Self, String> {
        match text.as_bytes() {
            [digit @ b'0'..=b'9'] => Ok(Self(usize::from(digit - b'0'))),
            _ => Err("it is not a single digit".to_owned()),
        }
    }
}

/// The partitions that an instance reads. Each partition must belong to exactly one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// Those that the consumer group assigns to it.
    Group,
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
    /// The partitions of this instance, of a topic with `count` partitions; none as long as the group assigns none.
    pub fn partitions(&self, count: i32) -> Vec<i32> {
        match self {
            Self::Group => Vec::new(),
            Self::All => (0..count).collect(),
            Self::Listed(partitions) => partitions.clone(),
            Self::Share { ordinal, replicas } => {
                (0..count).filter(|partition| partition % replicas == *ordinal).collect()
            }
        }
    }
}

impl Value for Assignment {
    const EXPECTED: &'static str =
        "all, group, partitions such as 0,2, or an ordinal and the number of replicas such as 0/3";

    fn parse(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        if text == "group" {
            return Ok(Self::Group);
        }
        let number = |text: &str| text.trim().parse::<i32>().ok().filter(|number| *number >= 0);
        if let Some((ordinal, replicas)) = text.split_once('/') {
            let share = number(ordinal).zip(number(replicas));
            return match share {
                Some((ordinal, replicas)) if ordinal < replicas => Ok(Self::Share { ordinal, replicas }),
                Some(_) => Err("the ordinal, counted from 0, is not below the number of replicas".to_owned()),
                None => Err("it is not two numbers separated by /".to_owned()),
            };
        }
        let listed: Option<Vec<i32>> = text.split(',').map(number).collect();
        listed.map(Self::Listed).ok_or_else(|| "a partition is a number from 0".to_owned())
    }
}

/// What to do when the next record does not exist any more: retention deleted it, the topic was recreated, or
/// its log was truncated.
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
            _ => Err("it is another value".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_the_group_needs_a_group_and_an_address() {
        let read = |variables: &[(&'static str, &str)]| {
            let environment = variables
                .iter()
                .fold(config::Environment::empty(), |environment, (name, value)| environment.with(*name, *value));
            let mut reader = Reader::new(environment);
            let settings = Settings::read(&mut reader);
            reader.finish(settings).map(|(settings, _)| settings.membership)
        };
        let group = ("PARTITIONS", "group");
        let member = read(&[group, ("ADVERTISED_HTTP", "analytics-0:4002"), ("KAFKA_GROUP_INSTANCE_ID", "0")]).unwrap();
        assert_eq!(member.advertised.unwrap().to_string(), "analytics-0:4002");
        assert_eq!((member.instance_id.as_deref(), member.session_timeout), (Some("0"), Duration::from_secs(15)));
        assert_eq!(member.standbys, Standbys(0));
        let member = read(&[group, ("SERVER_ADDRESS", "127.0.0.1"), ("STANDBYS", "1")]).unwrap();
        assert_eq!(member.standbys, Standbys(1));
        for (wrong, name) in [
            (&[group, ("SERVER_ADDRESS", "0.0.0.0"), ("AUTH", "off")][..], "ADVERTISED_HTTP"),
            (&[group, ("SERVER_ADDRESS", "127.0.0.1"), ("KAFKA_CONSUMER_GROUP", "none")], "KAFKA_CONSUMER_GROUP"),
            (&[group, ("SERVER_ADDRESS", "127.0.0.1"), ("STANDBYS", "10")], "STANDBYS"),
            (&[group, ("SERVER_ADDRESS", "127.0.0.1"), ("STANDBYS", "-1")], "STANDBYS"),
            (&[group, ("SERVER_ADDRESS", "127.0.0.1"), ("KAFKA_DEADLINE", "15s")], "KAFKA_DEADLINE"),
            (&[group, ("SERVER_ADDRESS", "127.0.0.1"), ("KAFKA_SESSION_TIMEOUT", "5s")], "KAFKA_DEADLINE"),
        ] {
            let errors = read(wrong).unwrap_err().to_string();
            assert!(errors.contains(name), "{errors}");
        }
    }

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
