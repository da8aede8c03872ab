//! Our reading of batches against kafka-protocol's, and against damage.

use std::{collections::BTreeMap, ops::Range};

use bytes::BytesMut;
use kafka_protocol::{
    protocol::StrBytes,
    records::{Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType},
};
use proptest::{collection::vec, option, prelude::*, sample::Index, sample::select};

use super::*;

const COMPRESSIONS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

/// A record as far as a consumer sees it.
type Seen = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

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

/// One batch after the other, of so many records each.
fn batches(lengths: &[i64], compression: Compression) -> Vec<u8> {
    let mut first = 0;
    lengths.iter().fold(Vec::new(), |mut bytes, length| {
        bytes.extend(batch(&(first..first + length).map(record).collect::<Vec<_>>(), compression));
        first += length;
        bytes
    })
}

/// Makes the checksum of a batch right again, so that damage gets past it.
fn mend(batch: &mut [u8]) {
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
}

/// What is read of bytes without aborted transactions; what makes the first batch unreadable is an error.
fn read(bytes: &[u8], from: i64) -> Result<(Records, i64), Malformed> {
    let Read { records, next, unreadable } = read_aborted(bytes, from, &[])?;
    unreadable.map_or(Ok((records, next)), |unreadable| Err(unreadable.reason))
}

fn read_aborted(bytes: &[u8], from: i64, aborted: &[(i64, i64)]) -> Result<Read, Malformed> {
    Records::read(Bytes::copy_from_slice(bytes), from, aborted.to_vec(), LARGEST_BATCH)
}

fn offsets(bytes: &[u8], from: i64) -> (Vec<i64>, i64) {
    let (records, next) = read(bytes, from).unwrap();
    (records.iter().map(|record| record.offset).collect(), next)
}

fn ours(bytes: &[u8], from: i64) -> Vec<Seen> {
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let (records, _) = read(bytes, from).unwrap();
    let seen = records.iter().map(|record| {
        let headers = record.headers().map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), owned(value)));
        (record.offset, record.timestamp, owned(record.key), owned(record.value), headers.collect())
    });
    seen.collect()
}

fn theirs(bytes: &[u8]) -> Vec<Seen> {
    let sets = RecordBatchDecoder::decode_all(&mut Bytes::copy_from_slice(bytes)).unwrap();
    let owned = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.to_vec());
    let seen = sets.into_iter().flat_map(|set| set.records).map(|record| {
        let headers = record.headers.into_iter().map(|(name, value)| (name.to_string(), owned(value)));
        (record.offset, record.timestamp, owned(record.key), owned(record.value), headers.collect())
    });
    seen.collect()
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
    fn every_batch_is_read_as_kafka_protocol_reads_it(
        parts in vec(vec((any_record(), 1..1000_i64), 1..6), 0..4),
        compression in select(&COMPRESSIONS[..]),
        from in any::<Index>(),
    ) {
        let (mut bytes, mut offset) = (Vec::new(), 1_i64 << 33);
        for part in parts {
            // As compaction leaves them: not every offset has a record.
            let part: Vec<_> = part.into_iter().map(|(record, gap)| {
                offset += gap;
                Record { offset, sequence: offset as i32, ..record }
            }).collect();
            bytes.extend(batch(&part, compression));
        }
        let all = theirs(&bytes);
        prop_assert_eq!(&ours(&bytes, 0), &all);
        let from = all.get(from.index(all.len() + 1)).map_or(offset + 1, |seen| seen.0);
        prop_assert_eq!(ours(&bytes, from), all.into_iter().filter(|seen| seen.0 >= from).collect::<Vec<_>>());
        prop_assert_eq!(read(&bytes, from).unwrap().1, offset.max(from - 1) + 1);
    }

    #[test]
    fn damage_is_told_by_the_checksum(
        at in any::<Index>(), damage in 1..=u8::MAX, compression in select(&COMPRESSIONS[..]),
    ) {
        let mut bytes = batch(&[record(0), record(1)], compression);
        // What is before it is the broker's to change.
        let at = 17 + at.index(bytes.len() - 17);
        bytes[at] ^= damage;
        prop_assert_eq!(read(&bytes, 0).err(), Some(Malformed::Checksum));
    }

    /// A publisher can damage what is below its own checksum.
    #[test]
    fn what_is_malformed_is_read_or_refused(
        damage in vec((any::<Index>(), any::<u8>()), 1..4), compression in select(&COMPRESSIONS[..]), from in 0..4_i64,
    ) {
        let mut bytes = batch(&[record(0), record(1), record(2)], compression);
        for (at, byte) in damage {
            let at = 21 + at.index(bytes.len() - 21);
            bytes[at] = byte;
        }
        mend(&mut bytes);
        if let Ok((records, next)) = read(&bytes, from) {
            prop_assert!(next >= from);
            for record in records.iter() {
                prop_assert!((from..next).contains(&record.offset), "{record:?}");
                record.to_record();
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..300), from in 0..10_i64) {
        let _ = read(&bytes, from);
    }
}

#[test]
fn a_batch_that_is_cut_off_comes_with_the_next_fetch() {
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
fn what_is_before_the_asked_offset_is_left_out() {
    for compression in COMPRESSIONS {
        let bytes = batches(&[3, 3], compression);
        for from in 0..=6 {
            assert_eq!(offsets(&bytes, from), ((from..6).collect(), 6), "{compression:?}");
        }
        assert!(read(&bytes, 6).unwrap().0.is_empty() && !read(&bytes, 5).unwrap().0.is_empty());
    }
}

/// What a producer does next in a partition.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Records outside of transactions.
    Send(i64),
    /// Records of this producer's transaction.
    SendInTransaction(i64, i64),
    /// The end of this producer's transaction: committed or not.
    End(i64, bool),
}

/// A partition, as a broker keeps it.
#[derive(Debug, Default)]
struct Log {
    /// Each batch with its first offset.
    batches: Vec<(i64, Vec<u8>)>,
    end: i64,
    /// Offsets of records that are to be read, those in open transactions too.
    visible: Vec<i64>,
    /// The first offset of each producer's open transaction, and its records.
    open: BTreeMap<i64, (i64, Vec<i64>)>,
    /// Producers, first offsets and the offsets of their markers.
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
        // Brokers write no marker for a transaction that nothing was sent in.
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

    /// What a broker answers to a fetch: whole batches from the one with the offset on, and a few of the aborted
    /// transactions: those that are not over before.
    fn fetch(&self, from: i64, batches: usize) -> Read {
        let from_batch = self.batches.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        let stable = self.batches.iter().filter(|(first, _)| *first < self.last_stable_offset());
        let bytes: Vec<u8> = stable.skip(from_batch).take(batches).flat_map(|(_, batch)| batch.clone()).collect();
        let aborted = self.aborted.iter().filter(|(_, _, marker)| *marker >= from);
        let aborted: Vec<_> = aborted.map(|(producer, first, _)| (*producer, *first)).collect();
        read_aborted(&bytes, from, &aborted).unwrap()
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
    fn what_was_aborted_is_passed_over_however_it_is_fetched(
        steps in vec(any_step(), 0..30), batches in 1..6_usize, from in 0..20_i64, compression in select(&COMPRESSIONS[..]),
    ) {
        let log = Log::of(&steps, compression);
        let stable = log.last_stable_offset();
        let (mut next, mut seen) = (from.min(stable), Vec::new());
        let expected: Vec<_> = log.visible.iter().copied().filter(|offset| (next..stable).contains(offset)).collect();
        while next < stable {
            let fetched = log.fetch(next, batches);
            prop_assert!(fetched.next > next && fetched.unreadable.is_none());
            seen.extend(fetched.records.iter().map(|record| record.offset));
            next = fetched.next;
        }
        prop_assert_eq!(next, stable, "markers at the end are passed too");
        prop_assert_eq!(seen, expected);
    }
}

#[test]
fn what_was_aborted_is_not_decompressed() {
    let steps = [Step::SendInTransaction(7, 3), Step::End(7, false), Step::Send(1)];
    let mut log = Log::of(&steps, Compression::Gzip);
    log.batches[0].1[61] ^= 0xff;
    mend(&mut log.batches[0].1);
    let fetched = log.fetch(0, 3);
    assert_eq!(fetched.records.iter().map(|record| record.offset).collect::<Vec<_>>(), [4]);
    assert_eq!((fetched.next, fetched.unreadable), (5, None));
}

#[test]
fn a_batch_that_cannot_be_read_is_given_alone_and_passed() {
    let part = |first: i64| batch(&(first..first + 3).map(record).collect::<Vec<_>>(), Compression::Gzip);
    let (first, mut second, third) = (part(0), part(3), part(6));
    second[61] ^= 0xff;
    mend(&mut second);
    let (bytes, length) = ([&first[..], &second, &third].concat(), second.len());
    let read = |from| read_aborted(&bytes, from, &[]).unwrap();
    let before = read(0);
    assert_eq!((before.records.iter().count(), before.next, before.unreadable), (3, 3, None));
    for from in [3, 5] {
        // From here on brokers send the batch that has the offset.
        let rest = read_aborted(&bytes[first.len()..], from, &[]).unwrap();
        let reason = Malformed::Compression;
        let expected = Unreadable { first_offset: from, last_offset: 5, bytes: length, reason };
        assert!(rest.records.is_empty());
        assert_eq!((rest.next, rest.unreadable), (6, Some(expected)));
    }
    let after = read_aborted(&third, 6, &[]).unwrap();
    assert_eq!((after.records.iter().count(), after.next), (3, 9));
}

#[test]
fn what_brokers_before_0_11_wrote_is_passed() {
    let old = |offset: i64, magic: u8| {
        let message = [&[0; 4][..], &[magic, 0], &[0; 8], &(-1_i32).to_be_bytes(), &(-1_i32).to_be_bytes()].concat();
        [&offset.to_be_bytes()[..], &(message.len() as i32).to_be_bytes(), &message].concat()
    };
    let after = batch(&[record(6)], Compression::None);
    let bytes = [old(4, 0), old(5, 1), after].concat();
    let passed = |from| {
        let read = read_aborted(&bytes, from, &[]).unwrap();
        (read.next, read.unreadable.map(|unreadable| (unreadable.first_offset, unreadable.reason)))
    };
    assert_eq!(passed(3), (5, Some((4, Malformed::Version(0)))));
    assert_eq!(passed(5), (6, Some((5, Malformed::Version(1)))));
    assert_eq!(passed(6), (7, None));
}

#[test]
fn what_is_decompressed_at_once_is_bounded_and_the_rest_comes_with_the_next_fetch() {
    let large = |offset| Record { value: Some(Bytes::from(vec![0; DECOMPRESSED_AT_ONCE / 3])), ..record(offset) };
    for compression in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let bytes: Vec<u8> = (0..10).flat_map(|offset| batch(&[large(offset)], compression)).collect();
        for from in [0, 4] {
            let at = bytes.len() / 10 * from;
            let read = Records::read(Bytes::copy_from_slice(&bytes[at..]), from as i64, vec![], DECOMPRESSED_AT_ONCE);
            let read = read.unwrap();
            assert_eq!((read.records.iter().count(), read.next), (2, from as i64 + 2), "{compression:?}");
        }
        let whole = batch(&(0..10).map(large).collect::<Vec<_>>(), compression);
        let too_large = Records::read(Bytes::copy_from_slice(&whole), 0, vec![], DECOMPRESSED_AT_ONCE).unwrap();
        assert_eq!(too_large.unreadable.map(|unreadable| unreadable.reason), Some(Malformed::TooLarge));
        assert_eq!(read(&whole, 0).unwrap().0.iter().count(), 10, "{compression:?}: there is room for one");
    }
}

#[test]
fn records_at_once_are_bounded_and_the_rest_comes_with_the_next_fetch() {
    let empty = |offset| Record { key: None, value: None, headers: Default::default(), ..record(offset) };
    let count = RECORDS_AT_ONCE as i64 * 2 + 10;
    let bytes = batch(&(0..count).map(empty).collect::<Vec<_>>(), Compression::Zstd);
    let (mut next, mut sizes) = (5, Vec::new());
    while next < count {
        let (records, after) = read(&bytes, next).unwrap();
        assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), (next..after).collect::<Vec<_>>());
        assert!(records.at_most() == RECORDS_AT_ONCE);
        sizes.push(after - next);
        next = after;
    }
    assert_eq!(sizes, [RECORDS_AT_ONCE as i64, RECORDS_AT_ONCE as i64, 5]);
}

#[test]
fn a_topic_may_stamp_records_when_it_appends_them() {
    let mut bytes = batches(&[3], Compression::None);
    bytes[22] |= 1 << 3;
    bytes[35..43].copy_from_slice(&7_i64.to_be_bytes());
    mend(&mut bytes);
    let (records, _) = read(&bytes, 0).unwrap();
    assert_eq!(records.iter().map(|record| record.timestamp).collect::<Vec<_>>(), [7; 3]);
}

#[test]
fn headers_are_kept_in_order_repeated_null_and_no_text_and_the_last_of_a_name_counts() {
    let body = b"\0\0\0\x01\x01\x08\x02a\x02x\x02a\x02y\x02a\x01\x02\xff\x02z";
    let encoded = [&[2 * body.len() as u8][..], body].concat();
    let record = RecordRef::check(&mut crate::cursor::Cursor(&encoded)).unwrap();
    assert_eq!((record.key, record.value, record.header("a"), record.header("b")), (None, None, None, None));
    assert_eq!(record.headers().count(), 4);
    let header = |name: &[u8], value: Option<&[u8]>| (name.to_vec(), value.map(<[u8]>::to_vec));
    let kept = [header(b"a", Some(b"x")), header(b"a", Some(b"y")), header(b"a", None), header(b"\xff", Some(b"z"))];
    assert_eq!(record.to_record().record.headers, kept);
}

#[test]
fn it_is_said_what_is_wrong() {
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = batches(&[3], Compression::None);
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        mend(&mut changed);
        read(&changed, 0).err()
    };
    assert_eq!(changed(0, &[]), None);
    assert_eq!(changed(0, &i64::MAX.to_be_bytes()), Some(Malformed::Batch), "no offset comes after it");
    assert_eq!(changed(8, &(-1_i32).to_be_bytes()), Some(Malformed::Batch), "a negative length");
    assert_eq!(changed(8, &48_i32.to_be_bytes()), Some(Malformed::Batch), "a length without room for the header");
    assert_eq!(changed(16, &[1]), Some(Malformed::Version(1)), "the format before");
    assert_eq!(changed(22, &[7]), Some(Malformed::Compression), "a compression that there is not");
    assert_eq!(changed(22, &[1]), Some(Malformed::Compression), "no gzip");
    assert_eq!(changed(23, &1_i32.to_be_bytes()), Some(Malformed::Record), "a record after the last");
    assert_eq!(changed(57, &2_i32.to_be_bytes()), Some(Malformed::Record), "more than the header says");
    assert_eq!(changed(57, &4_i32.to_be_bytes()), Some(Malformed::Record), "less than the header says");
}
