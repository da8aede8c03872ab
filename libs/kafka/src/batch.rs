use bytes::Bytes;

use crate::{Malformed, RecordRef, cursor::Cursor, decompress::decompress};

/// Bytes before a batch's length ends, which counts what follows.
const PREFIX: usize = 12;
/// Bytes before its first record.
const HEADER: usize = 61;
/// Where the version of its format is, in every version.
const MAGIC: usize = 16;
/// Where its checksum begins to count.
const CHECKED: usize = 21;
/// Bits of its attributes.
const COMPRESSION: i16 = 0b111;
const APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
/// Bytes that the marker at the end of an aborted transaction has for a key: its version, which is not looked at, and its
/// type.
const ABORT: [u8; 2] = [0, 0];

/// A batch as brokers store and send it: a header, and records that may be compressed.
///
/// <https://kafka.apache.org/documentation/#recordbatch>
#[derive(Debug)]
pub(crate) struct RawBatch {
    pub(crate) first_offset: i64,
    /// The offset after its last. Whoever may publish can write anything into a header, but not an offset that the broker
    /// would not have given.
    pub(crate) next: i64,
    /// Its bytes, as they were sent.
    pub(crate) length: usize,
    /// What its header says; or why it can be read no further.
    pub(crate) header: Result<Header, Malformed>,
    payload: Bytes,
}

/// What the header of a batch in version 2 of the format says. Offsets and timestamps of records count from its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    first_offset: i64,
    first_timestamp: i64,
    last_timestamp: i64,
    attributes: i16,
    last_delta: i32,
    pub(crate) producer_id: i64,
    count: i32,
}

impl RawBatch {
    /// Takes a whole batch from the front; none if there is but a part of one, as brokers cut off what they send.
    ///
    /// # Errors
    /// If what is there is no batch, so that nothing can be known of what follows either.
    pub(crate) fn take(bytes: &mut Bytes) -> Result<Option<Self>, Malformed> {
        let Some(length) = bytes.get(8..PREFIX) else { return Ok(None) };
        let length = usize::try_from(i32::from_be_bytes(array(length))).map_err(|_| Malformed::Batch)?;
        if length > bytes.len() - PREFIX {
            return Ok(None);
        }
        let whole = bytes.split_to(PREFIX + length);
        Self::read(&whole).map(Some)
    }

    /// Reads what is known of the first batch from its beginning alone.
    ///
    /// # Errors
    /// If too little is there, or it is no batch.
    pub(crate) fn peek(bytes: &Bytes) -> Result<Self, Malformed> {
        let length = bytes.get(8..PREFIX).ok_or(Malformed::Answer)?;
        let length = usize::try_from(i32::from_be_bytes(array(length))).map_err(|_| Malformed::Batch)?;
        let beginning = bytes.get(..HEADER).ok_or(Malformed::Answer)?;
        let batch = Self::read(&bytes.slice_ref(beginning))?;
        Ok(Self { length: PREFIX + length, ..batch })
    }

    fn read(whole: &Bytes) -> Result<Self, Malformed> {
        let magic = *whole.get(MAGIC).ok_or(Malformed::Batch)?;
        let first_offset = i64::from_be_bytes(array(&whole[..8]));
        let after = |offset: i64, delta: i32| offset.checked_add(i64::from(delta) + 1).ok_or(Malformed::Batch);
        let unreadable = |next, reason| {
            let header = Err(reason);
            Ok(Self { first_offset, next, length: whole.len(), header, payload: Bytes::new() })
        };
        if magic != 2 {
            // Where it stands for many records, the offset is the last one's.
            return unreadable(after(first_offset, 0)?, Malformed::Version(magic));
        }
        if whole.len() < HEADER {
            return Err(Malformed::Batch);
        }
        let header = Header {
            first_offset,
            attributes: i16::from_be_bytes(array(&whole[21..23])),
            last_delta: i32::from_be_bytes(array(&whole[23..27])),
            first_timestamp: i64::from_be_bytes(array(&whole[27..35])),
            last_timestamp: i64::from_be_bytes(array(&whole[35..43])),
            producer_id: i64::from_be_bytes(array(&whole[43..51])),
            count: i32::from_be_bytes(array(&whole[57..HEADER])),
        };
        let next = after(first_offset, header.last_delta.max(0))?;
        if crc32c::crc32c(&whole[CHECKED..]) != u32::from_be_bytes(array(&whole[17..21])) {
            return unreadable(next, Malformed::Checksum);
        }
        if header.last_delta < 0 || header.count < 0 {
            return unreadable(next, Malformed::Batch);
        }
        let payload = whole.slice(HEADER..);
        Ok(Self { first_offset, next, length: whole.len(), header: Ok(header), payload })
    }

    /// Its records; of what is compressed at most `limit` bytes.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn records(&self, limit: usize) -> Result<Batch, Malformed> {
        let header = self.header?;
        let codec = header.attributes & COMPRESSION;
        let is_compressed = codec != 0;
        // What is not compressed takes no memory beside the bytes that were received.
        let limit = if is_compressed { limit } else { usize::MAX };
        let batch = Batch { header, records: decompress(codec, self.payload.clone(), limit)?, is_compressed };
        batch.check()?;
        Ok(batch)
    }
}

impl Header {
    /// Whether it is there for brokers and clients alone, such as the end of a transaction.
    pub(crate) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether it belongs to a transaction.
    pub(crate) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// The timestamp of all records, where the topic has them stamped when they are appended.
    fn appended(&self) -> Option<i64> {
        (self.attributes & APPEND_TIME != 0).then_some(self.last_timestamp)
    }
}

/// A batch whose records are no longer compressed and known to be well-formed.
#[derive(Debug)]
pub(crate) struct Batch {
    header: Header,
    records: Bytes,
    is_compressed: bool,
}

impl Batch {
    /// How many records it has.
    pub(crate) fn count(&self) -> usize {
        usize::try_from(self.header.count).unwrap_or_default()
    }

    /// Bytes that it takes beside those that were received.
    pub(crate) fn decompressed(&self) -> usize {
        if self.is_compressed { self.records.len() } else { 0 }
    }

    /// Whether it is the marker that a transaction was aborted.
    pub(crate) fn is_abort(&self) -> bool {
        self.iter().next().and_then(|marker| marker.key?.get(2..4)) == Some(&ABORT)
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
        for _ in 0..self.header.count {
            let record = RecordRef::check(&mut cursor)?;
            if record.offset < next_delta || record.offset > i64::from(self.header.last_delta) {
                return Err(Malformed::Record);
            }
            next_delta = record.offset + 1;
        }
        if cursor.is_empty() { Ok(()) } else { Err(Malformed::Record) }
    }

    fn place<'a>(&self, mut record: RecordRef<'a>) -> RecordRef<'a> {
        let header = &self.header;
        record.offset += header.first_offset;
        record.timestamp = header.appended().unwrap_or_else(|| header.first_timestamp.saturating_add(record.timestamp));
        record
    }
}

/// The bytes of a number; the slice has as many.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
