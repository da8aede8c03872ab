//! Reading of answers to Fetch, which is the client's busiest place: nothing is copied, no length is trusted, and of an
//! answer that is too large to be read its beginning is enough.

use bytes::{Buf as _, Bytes};

use crate::Malformed;

/// The first version with variable-length numbers and tagged fields.
const FLEXIBLE: i16 = 12;

/// What an answer says of the one partition that was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FetchAnswer {
    pub(crate) throttle_ms: i32,
    pub(crate) error_code: i16,
    /// None if it says nothing of that partition.
    pub(crate) partition: Option<Partition>,
}

/// A partition in an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) error_code: i16,
    pub(crate) high_watermark: i64,
    pub(crate) last_stable_offset: i64,
    /// Producers and first offsets of aborted transactions.
    pub(crate) aborted: Vec<(i64, i64)>,
    pub(crate) records: Bytes,
}

impl FetchAnswer {
    /// Reads an answer without its header, as far as the records of this partition. The topic is not compared, as no other
    /// was asked for.
    ///
    /// # Errors
    /// If it is no such answer.
    pub(crate) fn read(version: i16, bytes: Bytes, partition: i32) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes, is_flexible: version >= FLEXIBLE };
        let mut answer = Self { throttle_ms: reader.i32()?, ..Self::default() };
        if version >= 7 {
            answer.error_code = reader.i16()?;
            let _session = reader.i32()?;
        }
        for _ in 0..reader.length()?.unwrap_or_default() {
            // Its id or its name.
            if version >= 13 {
                reader.take(16)?;
            } else {
                reader.name()?;
            }
            for _ in 0..reader.length()?.unwrap_or_default() {
                let (index, found) = Partition::read(version, &mut reader)?;
                if index == partition {
                    answer.partition = Some(found);
                    return Ok(answer);
                }
                reader.tags()?;
            }
            reader.tags()?;
        }
        Ok(answer)
    }
}

impl Partition {
    fn read(version: i16, reader: &mut Reader) -> Result<(i32, Self), Malformed> {
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
            reader.tags()?;
        }
        if version >= 11 {
            let _preferred_read_replica = reader.i32()?;
        }
        let length = reader.length()?.unwrap_or_default();
        // All that is there, if it is but the beginning of an answer.
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
        self.bytes.try_get_i16().map_err(|_| Malformed::Answer)
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        self.bytes.try_get_i32().map_err(|_| Malformed::Answer)
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.bytes.try_get_i64().map_err(|_| Malformed::Answer)
    }

    fn take(&mut self, length: usize) -> Result<(), Malformed> {
        if length > self.bytes.len() {
            return Err(Malformed::Answer);
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
            length => usize::try_from(length).map(Some).map_err(|_| Malformed::Answer),
        }
    }

    fn name(&mut self) -> Result<(), Malformed> {
        let length = if self.is_flexible { self.length()? } else { usize::try_from(self.i16()?).ok() };
        self.take(length.ok_or(Malformed::Answer)?)
    }

    fn tags(&mut self) -> Result<(), Malformed> {
        if self.is_flexible {
            for _ in 0..self.varint()? {
                let _tag = self.varint()?;
                let length = self.varint()?;
                self.take(length as usize)?;
            }
        }
        Ok(())
    }

    /// An unsigned number of up to 32 bits, seven bits a byte.
    fn varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.bytes.try_get_u8().map_err(|_| Malformed::Answer)?;
            value |= u32::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Answer)
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

    fn written(version: i16, answer: &FetchResponse) -> Bytes {
        let mut bytes = BytesMut::new();
        answer.encode(&mut bytes, version).unwrap();
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
        fn every_version_is_read_as_kafka_protocol_writes_it(
            version in 4..=18_i16, throttle: i32, error_code: i16, partitions in vec(any_partition(), 0..4), wanted in 0..4_i32,
        ) {
            let partitions: Vec<_> =
                (0..).zip(partitions).map(|(index, partition)| partition.with_partition_index(index)).collect();
            let expected = partitions.get(wanted as usize).map(|partition| Partition {
                error_code: partition.error_code,
                high_watermark: partition.high_watermark,
                last_stable_offset: partition.last_stable_offset,
                aborted: partition.aborted_transactions.iter().flatten()
                    .map(|aborted| (aborted.producer_id.0, aborted.first_offset)).collect(),
                records: partition.records.clone().unwrap_or_default(),
            });
            let error_code = if version >= 7 { error_code } else { 0 };
            let answer = FetchResponse::default()
                .with_throttle_time_ms(throttle)
                .with_error_code(error_code)
                .with_responses(vec![topic(version, partitions)]);
            let read = FetchAnswer::read(version, written(version, &answer), wanted);
            prop_assert_eq!(read, Ok(FetchAnswer { throttle_ms: throttle, error_code, partition: expected }));
        }

        #[test]
        fn any_bytes_are_read_or_refused(version in 4..=18_i16, bytes in vec(any::<u8>(), 0..200), wanted in 0..2_i32) {
            let _ = FetchAnswer::read(version, bytes.into(), wanted);
        }
    }

    #[test]
    fn of_an_answer_that_is_cut_off_the_beginning_is_read() {
        for version in 4..=18 {
            let records = Bytes::from(vec![7; 1000]);
            let partition = PartitionData::default().with_high_watermark(9).with_records(Some(records));
            let answer = FetchResponse::default().with_responses(vec![topic(version, vec![partition])]);
            let whole = written(version, &answer);
            let read = FetchAnswer::read(version, whole.slice(..500), 0).unwrap().partition.unwrap();
            assert!(read.high_watermark == 9 && (300..500).contains(&read.records.len()), "{version}: {read:?}");
            assert_eq!(FetchAnswer::read(version, whole.slice(..20), 0), Err(Malformed::Answer), "{version}");
        }
    }
}
