//! Decoding of Fetch responses, the hot path of the client: without copies, without trust in lengths, and from the beginning
//! of a response alone if it is too large.

use bytes::{Buf as _, Bytes};

use crate::Malformed;

/// The first flexible version: with compact lengths and tagged fields.
const FLEXIBLE: i16 = 12;

/// A response for one partition.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DecodedFetchResponse {
    pub(crate) throttle_ms: i32,
    pub(crate) error_code: i16,
    /// None if the response does not have the partition.
    pub(crate) partition: Option<DecodedPartition>,
}

/// A partition of a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DecodedPartition {
    pub(crate) error_code: i16,
    pub(crate) high_watermark: i64,
    pub(crate) last_stable_offset: i64,
    /// Producer ids and first offsets of aborted transactions.
    pub(crate) aborted: Vec<(i64, i64)>,
    pub(crate) records: Bytes,
}

impl DecodedFetchResponse {
    /// Decodes a response without its header, up to the records of this partition. The topic is not compared: the request
    /// has only one.
    ///
    /// # Errors
    /// If it is no such response.
    pub(crate) fn decode(version: i16, bytes: Bytes, partition: i32) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes, is_flexible: version >= FLEXIBLE };
        let mut response = Self { throttle_ms: reader.i32()?, ..Self::default() };
        if version >= 7 {
            response.error_code = reader.i16()?;
            let _session = reader.i32()?;
        }
        for _ in 0..reader.length()?.unwrap_or_default() {
            // The topic id, or the name.
            if version >= 13 {
                reader.skip(16)?;
            } else {
                reader.skip_name()?;
            }
            for _ in 0..reader.length()?.unwrap_or_default() {
                let (index, found) = DecodedPartition::decode(version, &mut reader)?;
                if index == partition {
                    response.partition = Some(found);
                    return Ok(response);
                }
                reader.skip_tags()?;
            }
            reader.skip_tags()?;
        }
        Ok(response)
    }
}

impl DecodedPartition {
    fn decode(version: i16, reader: &mut Reader) -> Result<(i32, Self), Malformed> {
        let index = reader.i32()?;
        let mut partition = Self {
            error_code: reader.i16()?,
            high_watermark: reader.i64()?,
            last_stable_offset: reader.i64()?,
            ..Self::default()
        };
        if version >= 5 {
            let _log_start_offset = reader.i64()?;
        }
        for _ in 0..reader.length()?.unwrap_or_default() {
            partition.aborted.push((reader.i64()?, reader.i64()?));
            reader.skip_tags()?;
        }
        if version >= 11 {
            let _preferred_read_replica = reader.i32()?;
        }
        let length = reader.length()?.unwrap_or_default();
        // Up to the end, if the response is truncated.
        partition.records = reader.bytes.split_to(length.min(reader.bytes.len()));
        Ok((index, partition))
    }
}

struct Reader {
    bytes: Bytes,
    is_flexible: bool,
}

impl Reader {
    fn i16(&mut self) -> Result<i16, Malformed> {
        self.bytes.try_get_i16().map_err(|_| Malformed::Response)
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        self.bytes.try_get_i32().map_err(|_| Malformed::Response)
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.bytes.try_get_i64().map_err(|_| Malformed::Response)
    }

    fn skip(&mut self, length: usize) -> Result<(), Malformed> {
        if length > self.bytes.len() {
            return Err(Malformed::Response);
        }
        self.bytes.advance(length);
        Ok(())
    }

    /// The length of an array or of bytes; none for null.
    fn length(&mut self) -> Result<Option<usize>, Malformed> {
        if self.is_flexible {
            return Ok((self.varint()? as usize).checked_sub(1));
        }
        match self.i32()? {
            -1 => Ok(None),
            length => usize::try_from(length).map(Some).map_err(|_| Malformed::Response),
        }
    }

    fn skip_name(&mut self) -> Result<(), Malformed> {
        let length = if self.is_flexible { self.length()? } else { usize::try_from(self.i16()?).ok() };
        self.skip(length.ok_or(Malformed::Response)?)
    }

    fn skip_tags(&mut self) -> Result<(), Malformed> {
        if self.is_flexible {
            for _ in 0..self.varint()? {
                let _tag = self.varint()?;
                let length = self.varint()?;
                self.skip(length as usize)?;
            }
        }
        Ok(())
    }

    /// An unsigned varint of up to 32 bits.
    fn varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.bytes.try_get_u8().map_err(|_| Malformed::Response)?;
            value |= u32::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Response)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::{
        messages::{
            FetchResponse, TopicName,
            fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData},
        },
        protocol::{Encodable as _, StrBytes},
    };
    use proptest::{collection::vec, option, prelude::*};
    use uuid::Uuid;

    use super::*;

    fn encoded(version: i16, response: &FetchResponse) -> Bytes {
        let mut bytes = BytesMut::new();
        response.encode(&mut bytes, version).unwrap();
        bytes.freeze()
    }

    fn topic(version: i16, partitions: Vec<PartitionData>) -> FetchableTopicResponse {
        let topic = FetchableTopicResponse::default().with_partitions(partitions);
        match version {
            13.. => topic.with_topic_id(Uuid::from_u128(7)),
            _ => topic.with_topic(TopicName(StrBytes::from_static_str("topic"))),
        }
    }

    prop_compose! {
        fn any_partition()(
            error_code: i16, high_watermark: i64, last_stable_offset: i64,
            aborted in option::of(vec(any::<(i64, i64)>(), 0..5)), records in option::of(vec(any::<u8>(), 0..300)),
        ) -> PartitionData {
            let transaction = |(producer, first): (i64, i64)| {
                AbortedTransaction::default().with_producer_id(producer.into()).with_first_offset(first)
            };
            PartitionData::default()
                .with_error_code(error_code)
                .with_high_watermark(high_watermark)
                .with_last_stable_offset(last_stable_offset)
                .with_aborted_transactions(aborted.map(|aborted| aborted.into_iter().map(transaction).collect()))
                .with_records(records.map(Bytes::from))
        }
    }

    proptest! {
        #[test]
        fn every_version_is_decoded_as_kafka_protocol_encodes_it(
            version in 4..=18_i16, throttle: i32, error_code: i16, partitions in vec(any_partition(), 0..4), wanted in 0..4_i32,
        ) {
            let partitions: Vec<_> =
                (0..).zip(partitions).map(|(index, partition)| partition.with_partition_index(index)).collect();
            let expected = partitions.get(wanted as usize).map(|partition| DecodedPartition {
                error_code: partition.error_code,
                high_watermark: partition.high_watermark,
                last_stable_offset: partition.last_stable_offset,
                aborted: partition.aborted_transactions.iter().flatten()
                    .map(|aborted| (aborted.producer_id.0, aborted.first_offset)).collect(),
                records: partition.records.clone().unwrap_or_default(),
            });
            let error_code = if version >= 7 { error_code } else { 0 };
            let response = FetchResponse::default()
                .with_throttle_time_ms(throttle)
                .with_error_code(error_code)
                .with_responses(vec![topic(version, partitions)]);
            let decoded = DecodedFetchResponse::decode(version, encoded(version, &response), wanted);
            prop_assert_eq!(decoded, Ok(DecodedFetchResponse { throttle_ms: throttle, error_code, partition: expected }));
        }

        #[test]
        fn arbitrary_bytes_are_decoded_or_rejected(version in 4..=18_i16, bytes in vec(any::<u8>(), 0..200), wanted in 0..2_i32) {
            let _ = DecodedFetchResponse::decode(version, bytes.into(), wanted);
        }
    }

    #[test]
    fn the_beginning_of_a_truncated_response_is_decoded() {
        for version in 4..=18 {
            let records = Bytes::from(vec![7; 1000]);
            let partition = PartitionData::default().with_high_watermark(9).with_records(Some(records));
            let response = FetchResponse::default().with_responses(vec![topic(version, vec![partition])]);
            let whole = encoded(version, &response);
            let decoded = DecodedFetchResponse::decode(version, whole.slice(..500), 0).unwrap().partition.unwrap();
            assert!(
                decoded.high_watermark == 9 && (300..500).contains(&decoded.records.len()),
                "{version}: {decoded:?}"
            );
            assert_eq!(
                DecodedFetchResponse::decode(version, whole.slice(..20), 0),
                Err(Malformed::Response),
                "{version}"
            );
        }
    }
}
