//! Decoding of responses whose bytes may be damaged, in bounded memory.
//!
//! kafka-protocol allocates memory for as many elements as an array claims to have, before it decodes the first one. It reads that number
//! through the buffer, so the buffer bounds it: no array has more elements than bytes that follow.

use std::ops::Range;

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::{Decodable, buf::ByteBuf};

use crate::Malformed;

/// Bytes of the longest varint, which is less than 2^28: no response is longer.
const MAX_VARINT_BYTES: u32 = 4;

/// Decodes a message, whose byte fields share the buffer.
///
/// # Errors
/// If it is no such message.
pub(crate) fn decode<M: Decodable>(bytes: Bytes, version: i16) -> Result<M, Malformed> {
    let mut bounded = BoundedBuffer::new(bytes.clone());
    let message = M::decode(&mut bounded, version).map_err(|_| Malformed::Response)?;
    if !bounded.has_lowered {
        return Ok(message);
    }
    // None of the lowered numbers is the length of an array, which would not have ended before the bytes did: read them as they are.
    let mut as_it_is = BoundedBuffer { lowers: false, ..BoundedBuffer::new(bytes) };
    M::decode(&mut as_it_is, version).map_err(|_| Malformed::Response)
}

/// A buffer whose bytes are read as numbers no higher than an array may be long.
#[derive(Debug)]
struct BoundedBuffer {
    bytes: Bytes,
    /// Whether a 32-bit number above the limit is read as the limit. It is the length of an array, or any other field.
    lowers: bool,
    has_lowered: bool,
    /// The value and the number of the bytes of a varint that has not ended.
    varint: (usize, u32),
}

impl BoundedBuffer {
    fn new(bytes: Bytes) -> Self {
        Self { bytes, lowers: true, has_lowered: false, varint: (0, 0) }
    }

    /// One more than the bytes that follow. Each element of an array has a byte at least, so an array of this length does not end.
    fn limit(&self) -> usize {
        self.bytes.len() + 1
    }
}

impl Buf for BoundedBuffer {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.varint = (0, 0);
        self.bytes.advance(count);
    }

    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        self.varint = (0, 0);
        let number = self.bytes.try_get_i32()?;
        match i32::try_from(self.limit()) {
            Ok(limit) if self.lowers && number > limit => {
                self.has_lowered = true;
                Ok(limit)
            }
            _ => Ok(number),
        }
    }

    /// A byte of a varint, or a boolean. A varint is a length plus one, or a tag, which may be above the limit only if it has one byte.
    ///
    /// A damaged boolean may be taken for the first byte of the varint after it. The value is then higher than that of the varint, which is
    /// rejected the sooner.
    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        let byte = self.bytes.try_get_u8()?;
        let (value, read) = self.varint;
        let (value, read) = (value | (usize::from(byte & 0x7f) << (7 * read)), read + 1);
        let is_last = byte & 0x80 == 0;
        let is_bounded = if is_last { read == 1 || value <= self.limit() } else { read < MAX_VARINT_BYTES };
        self.varint = if is_last { (0, 0) } else { (value, read) };
        if is_bounded { Ok(byte) } else { Err(TryGetError { requested: value, available: self.bytes.len() }) }
    }
}

impl ByteBuf for BoundedBuffer {
    fn peek_bytes(&mut self, range: Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.varint = (0, 0);
        self.bytes.split_to(size)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use bytes::BytesMut;
    use kafka_protocol::{
        messages::{
            ApiVersionsResponse, BrokerId, JoinGroupResponse, MetadataResponse, ProduceResponse, TopicName,
            api_versions_response::ApiVersion,
            join_group_response::JoinGroupResponseMember,
            metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
            produce_response::{PartitionProduceResponse, TopicProduceResponse},
        },
        protocol::{Encodable, StrBytes},
    };

    use super::*;

    /// Lengths that would take gigabytes, as numbers and as varints.
    const HUGE: [&[u8]; 3] = [b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\x7f"];

    fn text(text: &'static str) -> StrBytes {
        StrBytes::from_static_str(text)
    }

    /// Checks that the response is decoded as kafka-protocol decodes it, and in little memory whatever its lengths claim: where memory is
    /// not overcommitted, the allocation of more would end the test.
    fn check<M: Encodable + Decodable + PartialEq + Debug>(response: &M, version: i16) {
        let mut whole = BytesMut::new();
        response.encode(&mut whole, version).unwrap();
        let whole = whole.freeze();
        let expected = M::decode(&mut whole.clone(), version).unwrap();
        assert_eq!(decode::<M>(whole.clone(), version).unwrap(), expected, "version {version}");
        for at in 0..whole.len() {
            assert!(decode::<M>(whole.slice(..at), version).is_err(), "{at} bytes of {expected:?}");
            for huge in HUGE {
                let mut damaged = whole.to_vec();
                let end = damaged.len().min(at + huge.len());
                damaged[at..end].copy_from_slice(&huge[..end - at]);
                let _ = decode::<M>(damaged.into(), version);
            }
        }
    }

    #[test]
    fn damaged_lengths_in_responses_take_no_memory() {
        let name = || TopicName(text("patient"));
        for version in 4..=13 {
            let broker = MetadataResponseBroker::default().with_node_id(BrokerId(7)).with_host(text("kafka"));
            let partition = |index| {
                let partition = MetadataResponsePartition::default().with_partition_index(index);
                partition.with_leader_id(BrokerId(i32::MAX)).with_replica_nodes(vec![BrokerId(7), BrokerId(1 << 20)])
            };
            let topic = MetadataResponseTopic::default().with_name(Some(name())).with_is_internal(true);
            let response = MetadataResponse::default()
                .with_throttle_time_ms(i32::MAX)
                .with_brokers(vec![broker.with_port(9092)])
                .with_topics(vec![topic.with_partitions((0..3).map(partition).collect())]);
            check(&response, version);
        }
        for version in 5..=9 {
            let member = JoinGroupResponseMember::default().with_member_id(text("member"));
            let response = JoinGroupResponse::default()
                .with_generation_id(1 << 30)
                .with_protocol_name(Some(text("sticky-by-state")))
                .with_members(vec![member.with_metadata(Bytes::from_static(&[7; 300]))]);
            check(&response, version);
        }
        for version in 3..=13 {
            let partition = PartitionProduceResponse::default().with_index(1 << 20).with_base_offset(i64::MAX);
            let topic = TopicProduceResponse::default().with_name(name()).with_partition_responses(vec![partition]);
            check(&ProduceResponse::default().with_responses(vec![topic]).with_throttle_time_ms(1 << 20), version);
        }
        for version in 0..=4 {
            let keys = (0..80).map(|key| ApiVersion::default().with_api_key(key).with_max_version(key)).collect();
            check(&ApiVersionsResponse::default().with_api_keys(keys).with_finalized_features_epoch(1), version);
        }
    }

    #[test]
    fn no_number_is_read_that_is_a_longer_array_than_bytes_follow() {
        let buffer = |bytes: &[u8]| BoundedBuffer::new(Bytes::copy_from_slice(bytes));
        let number = |bytes: &[u8]| {
            let mut buffer = buffer(bytes);
            (buffer.try_get_i32(), buffer.has_lowered)
        };
        assert_eq!(number(b"\x7f\xff\xff\xff12"), (Ok(3), true));
        assert_eq!(number(b"\0\0\0\x0412"), (Ok(3), true));
        assert_eq!(number(b"\0\0\0\x0312"), (Ok(3), false));
        assert_eq!(number(b"\xff\xff\xff\xff12"), (Ok(-1), false));

        /// How many bytes are read, as those of varints and booleans.
        fn read(mut buffer: BoundedBuffer) -> usize {
            std::iter::from_fn(|| buffer.try_get_u8().ok()).count()
        }
        let followed_by = |start: &[u8], count: usize| [start, &vec![0; count]].concat();
        // 300 is 299 elements.
        assert_eq!(read(buffer(&followed_by(b"\xac\x02", 299))), 301);
        assert_eq!(read(buffer(&followed_by(b"\xac\x02", 298))), 1);
        assert_eq!(read(buffer(&followed_by(b"\xff\xff\xff\xff\x0f", 299))), 3);
        assert_eq!(read(buffer(&followed_by(b"\x7f\x7f", 0))), 2, "they are tags, or claim little");
        // After an invalid boolean, and without effect: 2^28 in more bytes than it needs.
        assert_eq!(read(buffer(&followed_by(b"\x80\x80\x80\x80\x80\x01", 299))), 3);
    }
}
