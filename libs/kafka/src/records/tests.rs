//! Our reading of batches against kafka-protocol's, and against damage.

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

fn read(bytes: &[u8], from: i64) -> Result<(Records, i64), Malformed> {
    Records::read(Bytes::copy_from_slice(bytes), from)
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

#[test]
fn the_end_of_a_transaction_is_passed_over() {
    let control = batch(&[Record { control: true, transactional: true, ..record(3) }], Compression::None);
    assert_eq!(offsets(&control, 3), (vec![], 4));
    let after = batch(&[record(4)], Compression::None);
    assert_eq!(offsets(&[batches(&[3], Compression::None), control, after].concat(), 0), (vec![0, 1, 2, 4], 5));
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
fn the_last_header_of_a_name_counts_and_a_name_need_not_be_text() {
    let body = b"\0\0\0\x01\x01\x08\x02a\x02x\x02a\x02y\x02a\x01\x02\xff\x02z";
    let encoded = [&[2 * body.len() as u8][..], body].concat();
    let record = RecordRef::check(&mut crate::cursor::Cursor(&encoded)).unwrap();
    assert_eq!((record.key, record.value, record.header("a"), record.header("b")), (None, None, None, None));
    assert_eq!(record.headers().count(), 4);
    let owned = record.to_record().record;
    assert_eq!((&owned.headers["a"][..], &owned.headers["\u{fffd}"][..]), (&b""[..], &b"z"[..]));
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
