//! Batches as they are sent, in version 2 of the format.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::Record;

/// Where the length of a batch ends, and where its checksum begins to count.
const PREFIX: usize = 12;
const CHECKED: usize = 21;
/// The version of the format.
const MAGIC: u8 = 2;
/// In the place of a producer, its epoch and a sequence: there is none.
const NONE: i8 = -1;

/// What a batch says of its sender. Most say nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    /// Bits that tell how the records are compressed and whether they belong to a transaction.
    pub(crate) attributes: i16,
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    pub(crate) base_sequence: i32,
}

impl Default for Sender {
    fn default() -> Self {
        let (producer_id, producer_epoch, base_sequence) = (NONE.into(), NONE.into(), NONE.into());
        Self { attributes: 0, producer_id, producer_epoch, base_sequence }
    }
}

/// A batch of these records; none if it would be too large for the format, which ends at 2 GiB.
pub(crate) fn batch(records: &[Record]) -> Option<Bytes> {
    let mut payload = BytesMut::new();
    let first = records.first().map_or(0, |record| record.timestamp.timestamp_millis());
    let mut last = first;
    for (number, record) in (0..).zip(records) {
        let timestamp = record.timestamp.timestamp_millis();
        last = last.max(timestamp);
        put_record(&mut payload, number, timestamp - first, record);
    }
    frame(Sender::default(), records.len(), (first, last), &payload)
}

/// A batch around records that are encoded, and compressed as the sender says, with the timestamps of the first record and
/// of the latest.
pub(crate) fn frame(sender: Sender, count: usize, timestamps: (i64, i64), payload: &[u8]) -> Option<Bytes> {
    let mut batch = BytesMut::with_capacity(payload.len() + 61);
    let count = i32::try_from(count).ok()?;
    batch.put_i64(0);
    batch.put_i32(i32::try_from(payload.len() + 49).ok()?);
    batch.put_i32(NONE.into());
    batch.put_u8(MAGIC);
    batch.put_u32(0);
    batch.put_i16(sender.attributes);
    batch.put_i32(count - 1);
    batch.put_i64(timestamps.0);
    batch.put_i64(timestamps.1);
    batch.put_i64(sender.producer_id);
    batch.put_i16(sender.producer_epoch);
    batch.put_i32(sender.base_sequence);
    batch.put_i32(count);
    batch.put_slice(payload);
    let checksum = crc32c::crc32c(&batch[CHECKED..]);
    batch[CHECKED - 4..CHECKED].copy_from_slice(&checksum.to_be_bytes());
    debug_assert_eq!(batch.len(), PREFIX + payload.len() + 49);
    Some(batch.freeze())
}

/// Appends a record, whose offset and timestamp count from the batch's.
pub(crate) fn put_record(to: &mut BytesMut, offset: i64, timestamp: i64, record: &Record) {
    let mut body = BytesMut::new();
    // Its attributes, of which there are none.
    body.put_u8(0);
    put_varint(&mut body, timestamp);
    put_varint(&mut body, offset);
    put_bytes(&mut body, record.key.as_deref());
    put_bytes(&mut body, record.value.as_deref());
    put_varint(&mut body, record.headers.len() as i64);
    for (name, value) in &record.headers {
        put_bytes(&mut body, Some(name));
        put_bytes(&mut body, value.as_deref());
    }
    put_varint(to, body.len() as i64);
    to.put_slice(&body);
}

/// Bytes after their length, or -1 for null.
fn put_bytes(to: &mut BytesMut, bytes: Option<&[u8]>) {
    put_varint(to, bytes.map_or(-1, |bytes| bytes.len() as i64));
    to.put_slice(bytes.unwrap_or_default());
}

/// A signed number in zigzag and seven bits a byte.
pub(crate) fn put_varint(to: &mut BytesMut, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest > 0x7f {
        to.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    to.put_u8(rest as u8);
}
