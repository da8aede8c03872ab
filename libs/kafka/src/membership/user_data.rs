//! What members tell each other through the group: in the formats of Kafka's consumers, with user data of this client.
//!
//! Whoever may join the group writes these bytes. They are decoded here and not by kafka-protocol, which allocates memory for as many
//! topics as they claim to have.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName, consumer_protocol_assignment,
        consumer_protocol_subscription,
    },
    protocol::Encodable as _,
};

use super::{AssignedMember, Subscription, assignor::Candidate};
use crate::Malformed;

/// The version of Kafka's formats: since version 1 with the partitions that a member owns.
const VERSION: i16 = 1;
/// The version of the user data.
const USER_DATA_VERSION: i16 = 1;

/// What the leader knows of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subscriber {
    pub(super) candidate: Candidate,
    pub(super) address: String,
}

/// Encodes the subscription of a member that had the partitions `owned`. Another `revision` makes it another one.
pub(super) fn encode_subscription(
    topic: &TopicName,
    subscription: &Subscription,
    owned: &[i32],
    revision: i32,
) -> Bytes {
    let mut user_data = BytesMut::new();
    user_data.put_i16(USER_DATA_VERSION);
    user_data.put_i32(revision);
    put_text(&mut user_data, &subscription.address);
    user_data.put_i32(subscription.offsets.len() as i32);
    for (partition, offset) in &subscription.offsets {
        user_data.put_i32(*partition);
        user_data.put_i64(*offset);
    }
    let owned = consumer_protocol_subscription::TopicPartition::default()
        .with_topic(topic.clone())
        .with_partitions(owned.to_vec());
    let subscription = ConsumerProtocolSubscription::default()
        .with_topics(vec![topic.0.clone()])
        .with_user_data(Some(user_data.freeze()))
        .with_owned_partitions(vec![owned]);
    let mut bytes = BytesMut::new();
    bytes.put_i16(VERSION);
    // It fails for lengths that do not fit, which neither topics nor user data have.
    let _ = subscription.encode(&mut bytes, VERSION);
    bytes.freeze()
}

/// Decodes the subscription of the member with this name.
pub(super) fn decode_subscription(name: String, topic: &TopicName, mut bytes: Bytes) -> Result<Subscriber, Malformed> {
    // Later versions add fields at the end.
    let version = bytes.try_get_i16().map_err(malformed)?;
    for _ in 0..get_length(&mut bytes)? {
        let _topic = get_name(&mut bytes)?;
    }
    let mut data = get_bytes(&mut bytes)?;
    let owned = if version >= 1 { get_partitions_of(topic, &mut bytes)? } else { Vec::new() };
    check_version(&mut data)?;
    let _revision = data.try_get_i32().map_err(malformed)?;
    let address = get_text(&mut data)?;
    let mut offsets = BTreeMap::new();
    for _ in 0..data.try_get_i32().map_err(malformed)? {
        let partition = data.try_get_i32().map_err(malformed)?;
        offsets.insert(partition, data.try_get_i64().map_err(malformed)?);
    }
    Ok(Subscriber { candidate: Candidate { name, offsets, owned }, address })
}

/// Encodes the assignment of the member of this name: its partitions, and who else has which.
pub(super) fn encode_assignment(topic: &TopicName, partitions: &[i32], members: &[NamedMember]) -> Bytes {
    let mut user_data = BytesMut::new();
    user_data.put_i16(USER_DATA_VERSION);
    user_data.put_i32(members.len() as i32);
    for member in members {
        put_text(&mut user_data, &member.name);
        put_text(&mut user_data, &member.address);
        put_partitions(&mut user_data, &member.partitions);
    }
    // At the end, where earlier versions ignore them.
    for member in members {
        put_partitions(&mut user_data, &member.standbys);
    }
    let assigned = consumer_protocol_assignment::TopicPartition::default()
        .with_topic(topic.clone())
        .with_partitions(partitions.to_vec());
    let assignment = ConsumerProtocolAssignment::default()
        .with_assigned_partitions(vec![assigned])
        .with_user_data(Some(user_data.freeze()));
    let mut bytes = BytesMut::new();
    bytes.put_i16(VERSION);
    // As for subscriptions.
    let _ = assignment.encode(&mut bytes, VERSION);
    bytes.freeze()
}

/// A member in an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedMember {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) partitions: Vec<i32>,
    /// The partitions of others of which it keeps a copy.
    pub(super) standbys: Vec<i32>,
}

/// Decodes the assignment of the member of this name.
pub(super) fn decode_assignment(
    name: &str,
    topic: &TopicName,
    mut bytes: Bytes,
) -> Result<(Vec<i32>, Vec<AssignedMember>), Malformed> {
    let _version = bytes.try_get_i16().map_err(malformed)?;
    let partitions = get_partitions_of(topic, &mut bytes)?;
    let mut data = get_bytes(&mut bytes)?;
    check_version(&mut data)?;
    let mut members = Vec::new();
    for _ in 0..data.try_get_i32().map_err(malformed)? {
        let is_self = get_text(&mut data)? == name;
        let address = get_text(&mut data)?;
        let partitions = get_partitions(&mut data)?;
        members.push(AssignedMember { address, partitions, standbys: Vec::new(), is_self });
    }
    // A leader of a version before knows of no standbys.
    if data.has_remaining() {
        for member in &mut members {
            member.standbys = get_partitions(&mut data)?;
        }
    }
    Ok((partitions, members))
}

fn put_partitions(to: &mut BytesMut, partitions: &[i32]) {
    to.put_i32(partitions.len() as i32);
    for partition in partitions {
        to.put_i32(*partition);
    }
}

fn get_partitions(from: &mut Bytes) -> Result<Vec<i32>, Malformed> {
    let mut partitions = Vec::new();
    for _ in 0..from.try_get_i32().map_err(malformed)? {
        partitions.push(from.try_get_i32().map_err(malformed)?);
    }
    Ok(partitions)
}

/// The partitions of one topic, of several topics with their partitions.
fn get_partitions_of(topic: &TopicName, from: &mut Bytes) -> Result<Vec<i32>, Malformed> {
    let mut partitions = Vec::new();
    for _ in 0..get_length(from)? {
        let name = get_name(from)?;
        let of_topic = get_partitions(from)?;
        if name == topic.0.as_bytes() {
            partitions.extend(of_topic);
        }
    }
    Ok(partitions)
}

fn check_version(data: &mut Bytes) -> Result<(), Malformed> {
    match data.try_get_i16() {
        Ok(USER_DATA_VERSION) => Ok(()),
        _ => Err(Malformed::Response),
    }
}

fn put_text(to: &mut BytesMut, text: &str) {
    let length = text.floor_char_boundary(text.len().min(usize::from(u16::MAX)));
    to.put_u16(length as u16);
    to.put_slice(&text.as_bytes()[..length]);
}

fn get_text(from: &mut Bytes) -> Result<String, Malformed> {
    let length = usize::from(from.try_get_u16().map_err(malformed)?);
    String::from_utf8(take(from, length)?.to_vec()).map_err(|_| Malformed::Response)
}

/// A string in Kafka's format.
fn get_name(from: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = usize::try_from(from.try_get_i16().map_err(malformed)?);
    take(from, length.map_err(|_| Malformed::Response)?)
}

/// Bytes in Kafka's format.
fn get_bytes(from: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = get_length(from)?;
    take(from, length)
}

/// The length of bytes or of an array in Kafka's format, which may be anything. Null is malformed.
fn get_length(from: &mut Bytes) -> Result<usize, Malformed> {
    usize::try_from(from.try_get_i32().map_err(malformed)?).map_err(|_| Malformed::Response)
}

fn take(from: &mut Bytes, length: usize) -> Result<Bytes, Malformed> {
    if from.len() < length { Err(Malformed::Response) } else { Ok(from.split_to(length)) }
}

fn malformed(_: bytes::TryGetError) -> Malformed {
    Malformed::Response
}

#[cfg(test)]
mod tests {
    use kafka_protocol::protocol::StrBytes;

    use super::*;

    /// Where the number of topics is, after the version.
    const TOPICS_AT: usize = 2;

    fn topic(name: &'static str) -> TopicName {
        TopicName(StrBytes::from_static_str(name))
    }

    #[test]
    fn subscriptions_and_assignments_come_back_as_they_were() {
        let subscription =
            Subscription { address: "analytics-0:4002".to_owned(), offsets: [(0, 5), (7, i64::MAX)].into() };
        let bytes = encode_subscription(&topic("patient"), &subscription, &[0, 7], 3);
        let decoded = decode_subscription("one".to_owned(), &topic("patient"), bytes.clone()).unwrap();
        let candidate = Candidate { name: "one".to_owned(), offsets: subscription.offsets.clone(), owned: vec![0, 7] };
        assert_eq!(decoded, Subscriber { candidate, address: subscription.address.clone() });
        assert_ne!(bytes, encode_subscription(&topic("patient"), &subscription, &[0, 7], 4));
        let other = decode_subscription("one".to_owned(), &topic("other"), bytes).unwrap();
        assert!(other.candidate.owned.is_empty(), "partitions of another topic");

        let member = |name: &str, partitions: &[i32], standbys: &[i32]| NamedMember {
            name: name.to_owned(),
            address: format!("{name}:1"),
            partitions: partitions.to_vec(),
            standbys: standbys.to_vec(),
        };
        let members = [member("one", &[0, 2], &[]), member("two", &[1], &[2, 0])];
        let bytes = encode_assignment(&topic("patient"), &[1], &members);
        let (partitions, members) = decode_assignment("two", &topic("patient"), bytes).unwrap();
        assert_eq!(partitions, [1]);
        let expected = [("one:1", vec![0, 2], vec![], false), ("two:1", vec![1], vec![2, 0], true)].map(
            |(address, partitions, standbys, is_self)| {
                let address = address.to_owned();
                AssignedMember { address, partitions, standbys, is_self }
            },
        );
        assert_eq!(members, expected);
    }

    #[test]
    fn each_version_of_kafkas_format_is_read() {
        let subscription = Subscription { address: "a:1".to_owned(), offsets: [(0, 5)].into() };
        let mut whole = encode_subscription(&topic("patient"), &subscription, &[0], 0);
        let of_version_1 = whole.split_off(2);
        let without_owned = of_version_1.slice(..of_version_1.len() - (4 + 2 + "patient".len() + 4 + 4));
        // Since version 2 with a generation, since version 3 with a rack.
        for (version, fields, owned) in [
            (0_i16, without_owned, vec![]),
            (1, of_version_1.clone(), vec![0]),
            (2, [&of_version_1[..], &[0; 4]].concat().into(), vec![0]),
            (3, [&of_version_1[..], &[0; 4], &[0xff; 2]].concat().into(), vec![0]),
        ] {
            let bytes = [&version.to_be_bytes()[..], &fields].concat();
            let decoded = decode_subscription("one".to_owned(), &topic("patient"), bytes.into()).unwrap();
            assert_eq!((decoded.candidate.owned, decoded.address), (owned, "a:1".to_owned()), "version {version}");
        }
    }

    /// In each place where a length may be, one that would take gigabytes.
    fn with_huge_lengths(whole: &Bytes) -> impl Iterator<Item = Bytes> {
        (0..whole.len() - 3).map(|at| {
            let mut damaged = whole.to_vec();
            damaged[at..at + 4].copy_from_slice(&i32::MAX.to_be_bytes());
            Bytes::from(damaged)
        })
    }

    #[test]
    fn what_others_write_is_an_error_and_no_panic() {
        let subscription = Subscription { address: "a:1".to_owned(), offsets: [(0, 5)].into() };
        let whole = encode_subscription(&topic("patient"), &subscription, &[0], 0);
        for length in 0..whole.len() {
            let cut = whole.slice(..length);
            assert!(decode_subscription(String::new(), &topic("patient"), cut).is_err(), "{length} bytes");
        }
        for (at, damaged) in with_huge_lengths(&whole).enumerate() {
            let decoded = decode_subscription(String::new(), &topic("patient"), damaged);
            assert!(at != TOPICS_AT || decoded.is_err(), "{decoded:?}");
        }
        let (name, address) = ("a".to_owned(), "a:1".to_owned());
        let members = [NamedMember { name, address, partitions: vec![0], standbys: vec![1] }];
        let whole = encode_assignment(&topic("patient"), &[0], &members);
        for length in 0..whole.len() {
            assert!(decode_assignment("a", &topic("patient"), whole.slice(..length)).is_err(), "{length} bytes");
        }
        for (at, damaged) in with_huge_lengths(&whole).enumerate() {
            let decoded = decode_assignment("a", &topic("patient"), damaged);
            assert!(at != TOPICS_AT || decoded.is_err(), "{decoded:?}");
        }
    }
}
