//! Encoding of batches with magic 2.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::Record;

/// Where the length field of a batch ends, and where the bytes begin that the checksum covers.
const PREFIX: usize = 12;
const CHECKED: usize = 21;
/// The magic byte.
const MAGIC: u8 = 2;
/// No partition leader epoch, producer id, producer epoch or sequence.
const NONE: i8 = -1;

/// Attributes and producer fields of a batch; by default there is no producer id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    /// Compression codec, transactional and control bits.
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

/// Encodes a batch; none above the 2 GiB of the format.
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

/// Puts the header of a batch before encoded records. `timestamps` are the first and the highest one.
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

/// Appends a record. Offset and timestamp are deltas.
pub(crate) fn put_record(to: &mut BytesMut, offset: i64, timestamp: i64, record: &Record) {
    let mut body = BytesMut::new();
    // No attributes.
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

/// Appends bytes with their length, which is -1 for null.
fn put_bytes(to: &mut BytesMut, bytes: Option<&[u8]>) {
    put_varint(to, bytes.map_or(-1, |bytes| bytes.len() as i64));
    to.put_slice(bytes.unwrap_or_default());
}

/// Appends a signed varint in zigzag encoding.
pub(crate) fn put_varint(to: &mut BytesMut, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest > 0x7f {
        to.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    to.put_u8(rest as u8);
}
