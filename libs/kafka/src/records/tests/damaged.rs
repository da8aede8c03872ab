//! Batches that are damaged, or that nobody could have written.

use super::*;

#[test]
fn each_malformation_has_its_error() {
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = batches(&[3], Compression::None);
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        fix_checksum(&mut changed);
        decode(&changed, 0).err()
    };
    assert_eq!(changed(0, &[]), None);
    assert_eq!(changed(0, &i64::MAX.to_be_bytes()), Some(Malformed::Batch), "no offset can follow");
    assert_eq!(changed(8, &(-1_i32).to_be_bytes()), Some(Malformed::Batch), "a negative length");
    assert_eq!(changed(8, &48_i32.to_be_bytes()), Some(Malformed::Batch), "a length without room for the header");
    assert_eq!(changed(16, &[1]), Some(Malformed::UnsupportedMagic(1)), "an older format");
    assert_eq!(changed(22, &[7]), Some(Malformed::Compression), "an unknown codec");
    assert_eq!(changed(22, &[1]), Some(Malformed::Compression), "not gzip");
    assert_eq!(changed(23, &1_i32.to_be_bytes()), Some(Malformed::Record), "a record after the last");
    assert_eq!(changed(57, &2_i32.to_be_bytes()), Some(Malformed::Record), "more than the header says");
    assert_eq!(changed(57, &4_i32.to_be_bytes()), Some(Malformed::Record), "less than the header says");
}

/// The last offset delta of the damaged batch is among what is damaged.
#[test]
fn a_corrupt_batch_ends_where_the_next_one_begins() {
    let ends = |bytes: &[u8], from| {
        let decoded = decode_without(bytes, from, &[]).unwrap();
        (decoded.records.iter().map(|record| record.offset).collect::<Vec<_>>(), decoded.next, decoded.unreadable)
    };
    let lengths = [3, 4, 2];
    let start: usize = batches(&lengths[..1], Compression::None).len();
    for damaged in 23..27 {
        let mut bytes = batches(&lengths, Compression::None);
        bytes[start + damaged] ^= 1;
        assert_eq!(ends(&bytes, 0), (vec![0, 1, 2], 3, None));
        for from in [3, 5] {
            let (records, next, unreadable) = ends(&bytes[start..], from);
            let unreadable = unreadable.unwrap();
            assert_eq!((records, next), (vec![], 7), "{damaged}");
            assert_eq!((unreadable.first_offset, unreadable.last_offset), (from, 6));
        }
        // As a broker that finds it by its damaged header responds.
        assert_eq!(ends(&bytes[start..], 7), (vec![7, 8], 9, None));
        let alone = &bytes[start..bytes.len() - batches(&lengths[2..], Compression::None).len()];
        assert_eq!(ends(alone, 3).1, 4, "its end is not known");
        // If something else is damaged, its header is believed.
        let mut elsewhere = alone.to_vec();
        elsewhere[damaged] ^= 1;
        elsewhere[40] ^= 1;
        assert_eq!(ends(&elsewhere, 3).1, 7);
    }
}

/// The checksum does not cover the length, so the bytes after the damaged batch are any bytes.
#[test]
fn a_batch_whose_length_is_damaged_costs_no_record_of_another_one() {
    let lengths = [3, 4, 2];
    let start: usize = batches(&lengths[..1], Compression::None).len();
    let bytes = batches(&lengths, Compression::None)[start..].to_vec();
    let length = i32::from_be_bytes(bytes[8..12].try_into().unwrap());
    let all = bytes.len() as i32 - 12;
    for damaged in (49..=all).filter(|damaged| *damaged != length) {
        let mut bytes = bytes.clone();
        bytes[8..12].copy_from_slice(&damaged.to_be_bytes());
        let decoded = decode_without(&bytes, 3, &[]).unwrap();
        let unreadable = decoded.unreadable.unwrap();
        assert!(decoded.records.is_empty());
        assert_eq!((unreadable.first_offset, unreadable.last_offset, decoded.next), (3, 6, 7), "{damaged}");
        // As after compaction: the header does not tell the end.
        bytes[60] ^= 1;
        assert_eq!(decode_without(&bytes, 3, &[]).unwrap().next, 4, "{damaged}");
    }
}

/// No batch can be that short, so nobody can tell where the next one begins.
#[test]
fn batches_before_an_impossible_length_are_read() {
    let lengths = [3, 4, 2];
    let start: usize = batches(&lengths[..2], Compression::None).len();
    for damaged in [-1, 0, 48] {
        let mut bytes = batches(&lengths, Compression::None);
        bytes[start + 8..start + 12].copy_from_slice(&i32::to_be_bytes(damaged));
        assert_eq!(offsets(&bytes, 0), ((0..7).collect(), 7), "{damaged}");
        assert_eq!(decode(&bytes[start..], 7).err(), Some(Malformed::Batch), "{damaged}");
    }
}
