//! Decoding of batches, compared with kafka-protocol's.

mod damaged;

use std::{collections::BTreeMap, ops::Range};

use bytes::BytesMut;
use kafka_protocol::{
    protocol::StrBytes,
    records::{Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType},
};
use proptest::{collection::vec, option, prelude::*, sample::Index, sample::select};

use super::*;
use crate::limits::MAX_BATCH_BYTES;

const COMPRESSIONS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

/// Offset, timestamp, key, value and headers of a record.
type ConsumedRecord = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

fn record(offset: i64) -> Record {
    Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset,
        sequence: offset as i32,
        timestamp: 1_700_000_000_000 + offset,
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::from(format!("value {offset}"))),
        headers: [(StrBytes::from_static_str("traceparent"), Some(Bytes::from_static(b"00-1")))].into_iter().collect(),
    }
}

fn batch(records: &[Record], compression: Compression) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    RecordBatchEncoder::encode(&mut bytes, records, &RecordEncodeOptions { version: 2, compression }).unwrap();
    bytes.to_vec()
}

/// Consecutive batches with these numbers of records.
fn batches(lengths: &[i64], compression: Compression) -> Vec<u8> {
    let mut first = 0;
    lengths.iter().fold(Vec::new(), |mut bytes, length| {
        bytes.extend(batch(&(first..first + length).map(record).collect::<Vec<_>>(), compression));
        first += length;
        bytes
    })
}

/// Recomputes the checksum of a damaged batch.
fn fix_checksum(batch: &mut [u8]) {
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
}

/// Decodes without aborted transactions. An unreadable batch is an error.
fn decode(bytes: &[u8], from: i64) -> Result<(Records, i64), Malformed> {
    let DecodedBatches { records, next, unreadable, .. } = decode_without(bytes, from, &[])?;
    unreadable.map_or(Ok((records, next)), |unreadable| Err(unreadable.reason))
}

fn decode_without(bytes: &[u8], from: i64, aborted: &[(i64, i64)]) -> Result<DecodedBatches, Malformed> {
    Records::decode(Bytes::copy_from_slice(bytes), from, aborted.to_vec(), MAX_BATCH_BYTES)
}

fn offsets(bytes: &[u8], from: i64) -> (Vec<i64>, i64) {
    let (records, next) = decode(bytes, from).unwrap();
    (records.iter().map(|record| record.offset).collect(), next)
}

fn ours(bytes: &[u8], from: i64) -> Vec<ConsumedRecord> {
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let (records, _) = decode(bytes, from).unwrap();
    let consumed = records.iter().map(|record| {
        let headers = record.headers().map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), owned(value)));
        (record.offset, record.timestamp, owned(record.key), owned(record.value), headers.collect())
    });
    consumed.collect()
}

fn theirs(bytes: &[u8]) -> Vec<ConsumedRecord> {
    let sets = RecordBatchDecoder::decode_all(&mut Bytes::copy_from_slice(bytes)).unwrap();
    let owned = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.to_vec());
    let consumed = sets.into_iter().flat_map(|set| set.records).map(|record| {
        let headers = record.headers.into_iter().map(|(name, value)| (name.to_string(), owned(value)));
        (record.offset, record.timestamp, owned(record.key), owned(record.value), headers.collect())
    });
    consumed.collect()
}

fn any_record() -> impl Strategy<Value = Record> {
    let bytes = || option::of(vec(any::<u8>(), 0..200).prop_map(Bytes::from));
    let headers = vec((".{0,8}".prop_map(StrBytes::from_string), bytes()), 0..4);
    (0..1_i64 << 45, bytes(), bytes(), headers).prop_map(|(timestamp, key, value, headers)| Record {
        timestamp,
        key,
        value,
        headers: headers.into_iter().collect(),
        ..record(0)
    })
}

proptest! {
    #[test]
    fn every_batch_is_decoded_as_kafka_protocol_decodes_it(
        parts in vec(vec((any_record(), 1..1000_i64), 1..6), 0..4),
        compression in select(&COMPRESSIONS[..]),
        from in any::<Index>(),
    ) {
        let (mut bytes, mut offset) = (Vec::new(), 1_i64 << 33);
        for part in parts {
            // With gaps, as after compaction.
            let part: Vec<_> = part.into_iter().map(|(record, gap)| {
                offset += gap;
                Record { offset, sequence: offset as i32, ..record }
            }).collect();
            bytes.extend(batch(&part, compression));
        }
        let all = theirs(&bytes);
        prop_assert_eq!(&ours(&bytes, 0), &all);
        let from = all.get(from.index(all.len() + 1)).map_or(offset + 1, |consumed| consumed.0);
        prop_assert_eq!(ours(&bytes, from), all.into_iter().filter(|consumed| consumed.0 >= from).collect::<Vec<_>>());
        prop_assert_eq!(decode(&bytes, from).unwrap().1, offset.max(from - 1) + 1);
    }

    #[test]
    fn damage_is_detected_by_the_checksum(
        at in any::<Index>(), damage in 1..=u8::MAX, compression in select(&COMPRESSIONS[..]),
    ) {
        let mut bytes = batch(&[record(0), record(1)], compression);
        // The checksum does not cover the fields before it, which the broker sets.
        let at = 17 + at.index(bytes.len() - 17);
        bytes[at] ^= damage;
        prop_assert_eq!(decode(&bytes, 0).err(), Some(Malformed::Checksum));
    }

    /// A producer can send anything with a valid checksum.
    #[test]
    fn malformed_batches_are_decoded_or_rejected(
        damage in vec((any::<Index>(), any::<u8>()), 1..4), compression in select(&COMPRESSIONS[..]), from in 0..4_i64,
    ) {
        let mut bytes = batch(&[record(0), record(1), record(2)], compression);
        for (at, byte) in damage {
            let at = 21 + at.index(bytes.len() - 21);
            bytes[at] = byte;
        }
        fix_checksum(&mut bytes);
        if let Ok((records, next)) = decode(&bytes, from) {
            prop_assert!(next >= from);
            for record in records.iter() {
                prop_assert!((from..next).contains(&record.offset), "{record:?}");
                record.to_record();
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_decoded_or_rejected(bytes in vec(any::<u8>(), 0..300), from in 0..10_i64) {
        let _ = decode(&bytes, from);
    }
}

#[test]
fn an_incomplete_batch_is_left_for_the_next_fetch() {
    let bytes = batches(&[3, 2], Compression::None);
    let first = batches(&[3], Compression::None).len();
    for cut in 0..=bytes.len() {
        let (expected, next) = match cut {
            cut if cut < first => (vec![], 0),
            cut if cut < bytes.len() => (vec![0, 1, 2], 3),
            _ => (vec![0, 1, 2, 3, 4], 5),
        };
        assert_eq!(offsets(&bytes[..cut], 0), (expected, next), "{cut}");
    }
}

#[test]
fn records_before_the_fetch_offset_are_skipped() {
    for compression in COMPRESSIONS {
        let bytes = batches(&[3, 3], compression);
        for from in 0..=6 {
            assert_eq!(offsets(&bytes, from), ((from..6).collect(), 6), "{compression:?}");
        }
        assert!(decode(&bytes, 6).unwrap().0.is_empty() && !decode(&bytes, 5).unwrap().0.is_empty());
    }
}

/// An action of a producer.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Sends records outside of transactions.
    Send(i64),
    /// Sends records in the transaction of this producer.
    SendInTransaction(i64, i64),
    /// Commits or aborts the transaction of this producer.
    End(i64, bool),
}

/// The log of a partition at a broker.
#[derive(Debug, Default)]
struct Log {
    /// Each batch with its first offset.
    batches: Vec<(i64, Vec<u8>)>,
    end: i64,
    /// Offsets of records outside of transactions and in committed ones.
    visible: Vec<i64>,
    /// The first offset of each producer's open transaction, and its records.
    open: BTreeMap<i64, (i64, Vec<i64>)>,
    /// Producer ids, first offsets and marker offsets.
    aborted: Vec<(i64, i64, i64)>,
}

impl Log {
    fn of(steps: &[Step], compression: Compression) -> Self {
        let mut log = Self::default();
        for step in steps {
            match *step {
                Step::Send(count) => {
                    let offsets = log.append(-1, count, compression);
                    log.visible.extend(offsets);
                }
                Step::SendInTransaction(producer, count) => {
                    let offsets = log.append(producer, count, compression);
                    let open = log.open.entry(producer).or_insert((offsets.start, Vec::new()));
                    open.1.extend(offsets);
                }
                Step::End(producer, committed) => log.end(producer, committed),
            }
        }
        log.visible.sort_unstable();
        log
    }

    fn append(&mut self, producer_id: i64, count: i64, compression: Compression) -> Range<i64> {
        let offsets = self.end..self.end + count;
        let of_producer = |offset| Record { producer_id, transactional: producer_id >= 0, ..record(offset) };
        self.push(batch(&offsets.clone().map(of_producer).collect::<Vec<_>>(), compression), count);
        offsets
    }

    fn end(&mut self, producer_id: i64, committed: bool) {
        // Brokers write no marker for an empty transaction.
        let Some((first, offsets)) = self.open.remove(&producer_id) else { return };
        if committed {
            self.visible.extend(offsets);
        } else {
            self.aborted.push((producer_id, first, self.end));
        }
        let key = Some(Bytes::from(vec![0, 0, 0, u8::from(committed)]));
        let marker = Record { control: true, transactional: true, producer_id, key, ..record(self.end) };
        self.push(batch(&[marker], Compression::None), 1);
    }

    fn push(&mut self, batch: Vec<u8>, count: i64) {
        self.batches.push((self.end, batch));
        self.end += count;
    }

    fn last_stable_offset(&self) -> i64 {
        self.open.values().map(|(first, _)| *first).min().unwrap_or(self.end)
    }

    /// The decoded response to a fetch: whole batches from the one with the offset on, and the aborted transactions that end
    /// after the offset.
    fn fetch(&self, from: i64, batches: usize) -> DecodedBatches {
        let from_batch = self.batches.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        let stable = self.batches.iter().filter(|(first, _)| *first < self.last_stable_offset());
        let bytes: Vec<u8> = stable.skip(from_batch).take(batches).flat_map(|(_, batch)| batch.clone()).collect();
        let aborted = self.aborted.iter().filter(|(_, _, marker)| *marker >= from);
        let aborted: Vec<_> = aborted.map(|(producer, first, _)| (*producer, *first)).collect();
        decode_without(&bytes, from, &aborted).unwrap()
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..4_i64).prop_map(Step::Send),
        (0..3_i64, 1..4_i64).prop_map(|(producer, count)| Step::SendInTransaction(producer, count)),
        (0..3_i64, any::<bool>()).prop_map(|(producer, committed)| Step::End(producer, committed)),
    ]
}

proptest! {
    #[test]
    fn aborted_records_are_skipped_wherever_a_fetch_begins_and_ends(
        steps in vec(any_step(), 0..30), batches in 1..6_usize, from in 0..20_i64, compression in select(&COMPRESSIONS[..]),
    ) {
        let log = Log::of(&steps, compression);
        let stable = log.last_stable_offset();
        let (mut next, mut consumed) = (from.min(stable), Vec::new());
        let expected: Vec<_> = log.visible.iter().copied().filter(|offset| (next..stable).contains(offset)).collect();
        while next < stable {
            let fetched = log.fetch(next, batches);
            prop_assert!(fetched.next > next && fetched.unreadable.is_none());
            consumed.extend(fetched.records.iter().map(|record| record.offset));
            next = fetched.next;
        }
        prop_assert_eq!(next, stable, "markers at the end are skipped too");
        prop_assert_eq!(consumed, expected);
    }
}

#[test]
fn aborted_batches_are_not_decompressed() {
    let steps = [Step::SendInTransaction(7, 3), Step::End(7, false), Step::Send(1)];
    let mut log = Log::of(&steps, Compression::Gzip);
    log.batches[0].1[61] ^= 0xff;
    fix_checksum(&mut log.batches[0].1);
    let fetched = log.fetch(0, 3);
    assert_eq!(fetched.records.iter().map(|record| record.offset).collect::<Vec<_>>(), [4]);
    assert_eq!((fetched.next, fetched.unreadable), (5, None));
}

#[test]
fn an_unreadable_batch_is_returned_alone_and_skipped() {
    let part = |first: i64| batch(&(first..first + 3).map(record).collect::<Vec<_>>(), Compression::Gzip);
    let (first, mut second, third) = (part(0), part(3), part(6));
    second[61] ^= 0xff;
    fix_checksum(&mut second);
    let (bytes, length) = ([&first[..], &second, &third].concat(), second.len());
    let before = decode_without(&bytes, 0, &[]).unwrap();
    assert_eq!((before.records.iter().count(), before.next, before.unreadable), (3, 3, None));
    for from in [3, 5] {
        // A response begins with the batch that has the offset.
        let rest = decode_without(&bytes[first.len()..], from, &[]).unwrap();
        let reason = Malformed::Compression;
        let expected = UnreadableBatch { first_offset: from, last_offset: 5, bytes: length, reason };
        assert!(rest.records.is_empty());
        assert_eq!((rest.next, rest.unreadable), (6, Some(expected)));
    }
    let after = decode_without(&third, 6, &[]).unwrap();
    assert_eq!((after.records.iter().count(), after.next), (3, 9));
}

#[test]
fn batches_of_brokers_before_0_11_are_skipped() {
    let old = |offset: i64, magic: u8| {
        let message = [&[0; 4][..], &[magic, 0], &[0; 8], &(-1_i32).to_be_bytes(), &(-1_i32).to_be_bytes()].concat();
        [&offset.to_be_bytes()[..], &(message.len() as i32).to_be_bytes(), &message].concat()
    };
    let after = batch(&[record(6)], Compression::None);
    let bytes = [old(4, 0), old(5, 1), after].concat();
    let skipped = |from| {
        let read = decode_without(&bytes, from, &[]).unwrap();
        (read.next, read.unreadable.map(|unreadable| (unreadable.first_offset, unreadable.reason)))
    };
    assert_eq!(skipped(3), (5, Some((4, Malformed::UnsupportedMagic(0)))));
    assert_eq!(skipped(5), (6, Some((5, Malformed::UnsupportedMagic(1)))));
    assert_eq!(skipped(6), (7, None));
}

#[test]
fn decompressed_bytes_of_a_fetch_are_bounded() {
    let large = |offset| Record { value: Some(Bytes::from(vec![0; MAX_DECOMPRESSED_BYTES / 3])), ..record(offset) };
    for compression in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let bytes: Vec<u8> = (0..10).flat_map(|offset| batch(&[large(offset)], compression)).collect();
        for from in [0, 4] {
            let at = bytes.len() / 10 * from;
            let read =
                Records::decode(Bytes::copy_from_slice(&bytes[at..]), from as i64, vec![], MAX_DECOMPRESSED_BYTES);
            let read = read.unwrap();
            assert_eq!((read.records.iter().count(), read.next), (2, from as i64 + 2), "{compression:?}");
        }
        let whole = batch(&(0..10).map(large).collect::<Vec<_>>(), compression);
        let too_large = Records::decode(Bytes::copy_from_slice(&whole), 0, vec![], MAX_DECOMPRESSED_BYTES).unwrap();
        assert_eq!(too_large.unreadable.map(|unreadable| unreadable.reason), Some(Malformed::TooLarge));
        assert_eq!(
            decode(&whole, 0).unwrap().0.iter().count(),
            10,
            "{compression:?}: it may have more as the only one"
        );
    }
}

#[test]
fn records_of_a_fetch_are_bounded() {
    let empty = |offset| Record { key: None, value: None, headers: Default::default(), ..record(offset) };
    let count = MAX_RECORDS as i64 * 2 + 10;
    let bytes = batch(&(0..count).map(empty).collect::<Vec<_>>(), Compression::Zstd);
    let (mut next, mut sizes) = (5, Vec::new());
    while next < count {
        let (records, after) = decode(&bytes, next).unwrap();
        assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), (next..after).collect::<Vec<_>>());
        assert!(records.max_len() == MAX_RECORDS);
        sizes.push(after - next);
        next = after;
    }
    assert_eq!(sizes, [MAX_RECORDS as i64, MAX_RECORDS as i64, 5]);
}

#[test]
fn the_leader_epoch_before_an_offset_is_that_of_the_batch_that_ends_there_or_has_it() {
    let of_epoch = |offsets: Range<i64>, epoch: i32| {
        let mut bytes = batch(&offsets.map(record).collect::<Vec<_>>(), Compression::None);
        bytes[12..16].copy_from_slice(&epoch.to_be_bytes());
        bytes
    };
    // Between the last two is an epoch of which nothing is returned, such as a transaction that was aborted.
    let bytes = [of_epoch(0..3, 1), of_epoch(3..6, 2), of_epoch(10..13, 4)].concat();
    let (records, _) = decode(&bytes, 0).unwrap();
    let epochs = [0, 2, 3, 4, 6, 10, 11, 13].map(|offset| records.leader_epoch_before(offset));
    assert_eq!(epochs, [None, Some(1), Some(1), Some(2), Some(2), None, Some(4), Some(4)]);
}

#[test]
fn records_of_a_topic_with_log_append_time_have_its_timestamp() {
    let mut bytes = batches(&[3], Compression::None);
    bytes[22] |= 1 << 3;
    bytes[35..43].copy_from_slice(&7_i64.to_be_bytes());
    fix_checksum(&mut bytes);
    let (records, _) = decode(&bytes, 0).unwrap();
    assert_eq!(records.iter().map(|record| record.timestamp).collect::<Vec<_>>(), [7; 3]);
}

#[test]
fn headers_keep_order_duplicates_and_null_values_and_the_last_of_a_name_counts() {
    let body = b"\0\0\0\x01\x01\x08\x02a\x02x\x02a\x02y\x02a\x01\x02\xff\x02z";
    let encoded = [&[2 * body.len() as u8][..], body].concat();
    let record = RecordRef::validate(&mut crate::cursor::Cursor(&encoded)).unwrap();
    assert_eq!((record.key, record.value, record.header("a"), record.header("b")), (None, None, None, None));
    assert_eq!(record.headers().count(), 4);
    let header = |name: &[u8], value: Option<&[u8]>| (name.to_vec(), value.map(<[u8]>::to_vec));
    let kept = [header(b"a", Some(b"x")), header(b"a", Some(b"y")), header(b"a", None), header(b"\xff", Some(b"z"))];
    assert_eq!(record.to_record().record.headers, kept);
}
