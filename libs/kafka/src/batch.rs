use bytes::Bytes;
use kafka_protocol::compression::{Decompressor, Gzip, Lz4, Snappy, Zstd};

use crate::{Malformed, RecordRef, cursor::Cursor};

/// Bytes before a batch's length ends, which counts what follows.
const PREFIX: usize = 12;
/// Bytes before its first record.
const HEADER: usize = 61;
/// Where its checksum begins to count.
const CHECKED: usize = 21;
/// Bits of its attributes.
const COMPRESSION: i16 = 0b111;
const APPEND_TIME: i16 = 1 << 3;
const CONTROL: i16 = 1 << 5;

/// A batch of records as brokers store and send it, in version 2 of the format: a header, and records with offsets and
/// timestamps that count from the header's.
///
/// <https://kafka.apache.org/documentation/#recordbatch>
#[derive(Debug)]
pub(crate) struct Batch {
    first_offset: i64,
    first_timestamp: i64,
    /// The timestamp of all records, where the topic has them stamped when they are appended.
    appended: Option<i64>,
    last_delta: i32,
    is_control: bool,
    count: i32,
    /// The records, no longer compressed and known to be well-formed.
    records: Bytes,
}

impl Batch {
    /// Takes a whole batch from the front, and gives it with the offset after its last; none if there is but a part of
    /// one, as brokers cut off what they send.
    pub(crate) fn take(bytes: &mut Bytes) -> Result<Option<(Self, i64)>, Malformed> {
        let Some(length) = bytes.get(8..PREFIX) else { return Ok(None) };
        let length = usize::try_from(i32::from_be_bytes(array(length))).map_err(|_| Malformed::Batch)?;
        if length < HEADER - PREFIX {
            return Err(Malformed::Batch);
        }
        if length > bytes.len() - PREFIX {
            return Ok(None);
        }
        let whole = bytes.split_to(PREFIX + length);
        if whole[16] != 2 {
            return Err(Malformed::Version(whole[16]));
        }
        if crc32c::crc32c(&whole[CHECKED..]) != u32::from_be_bytes(array(&whole[17..21])) {
            return Err(Malformed::Checksum);
        }
        let attributes = i16::from_be_bytes(array(&whole[21..23]));
        let last_timestamp = i64::from_be_bytes(array(&whole[35..43]));
        let batch = Self {
            first_offset: i64::from_be_bytes(array(&whole[..8])),
            last_delta: i32::from_be_bytes(array(&whole[23..27])),
            first_timestamp: i64::from_be_bytes(array(&whole[27..35])),
            appended: (attributes & APPEND_TIME != 0).then_some(last_timestamp),
            is_control: attributes & CONTROL != 0,
            count: i32::from_be_bytes(array(&whole[57..HEADER])),
            records: decompress(attributes & COMPRESSION, whole.slice(HEADER..))?,
        };
        batch.check()?;
        let next = batch.first_offset.checked_add(i64::from(batch.last_delta) + 1).ok_or(Malformed::Batch)?;
        Ok(Some((batch, next)))
    }

    /// Whether it is there for brokers alone, such as the end of a transaction.
    pub(crate) fn is_control(&self) -> bool {
        self.is_control
    }

    /// How many records it has.
    pub(crate) fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or_default()
    }

    /// Its records, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let mut cursor = Cursor(&self.records);
        // It has been checked: nothing but the end ends it.
        std::iter::from_fn(move || RecordRef::read(&mut cursor).ok().map(|record| self.place(record)))
    }

    /// Reads every record once, so that nothing can be wrong with them later.
    fn check(&self) -> Result<(), Malformed> {
        let mut cursor = Cursor(&self.records);
        let mut next_delta = 0;
        for _ in 0..self.count {
            let record = RecordRef::check(&mut cursor)?;
            if record.offset < next_delta || record.offset > i64::from(self.last_delta) {
                return Err(Malformed::Record);
            }
            next_delta = record.offset + 1;
        }
        if cursor.is_empty() { Ok(()) } else { Err(Malformed::Record) }
    }

    fn place<'a>(&self, mut record: RecordRef<'a>) -> RecordRef<'a> {
        record.offset += self.first_offset;
        record.timestamp = self.appended.unwrap_or_else(|| self.first_timestamp.saturating_add(record.timestamp));
        record
    }
}

fn decompress(compression: i16, mut bytes: Bytes) -> Result<Bytes, Malformed> {
    let whole = |records: &mut Bytes| Ok(records.split_off(0));
    let records = match compression {
        0 => return Ok(bytes),
        1 => Gzip::decompress(&mut bytes, whole),
        2 => Snappy::decompress(&mut bytes, whole),
        3 => Lz4::decompress(&mut bytes, whole),
        4 => Zstd::decompress(&mut bytes, whole),
        _ => return Err(Malformed::Compression),
    };
    records.map_err(|_| Malformed::Compression)
}

/// The bytes of a number; the slice has as many.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
