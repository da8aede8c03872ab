use bytes::Bytes;

use crate::{Malformed, RecordRef, cursor::Cursor, decompress::decompress};

/// Where the length field of a batch ends, which counts the bytes after it.
const PREFIX: usize = 12;
/// The length of a batch's header.
const HEADER: usize = 61;
/// Where the magic byte is, in every version of the format. The leader epoch is between both.
const MAGIC: usize = 16;
/// Where the bytes begin that the checksum covers.
const CHECKED: usize = 21;
/// Bits of the attributes.
const COMPRESSION: i16 = 0b111;
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
/// The type in the key of an ABORT marker, after the version.
const ABORT: [u8; 2] = [0, 0];

/// A batch as brokers store and send it: a header, and a payload that may be compressed.
///
/// <https://kafka.apache.org/documentation/#recordbatch>
#[derive(Debug)]
pub(crate) struct RawBatch {
    pub(crate) first_offset: i64,
    /// The offset after the last one. A producer may write anything into a header, but the broker assigns the offsets. If the
    /// checksum is wrong, the one after the first, unless two fields of the header agree on another one.
    pub(crate) next: i64,
    /// Its bytes on the wire.
    pub(crate) length: usize,
    /// The header, or why the batch cannot be decoded.
    pub(crate) header: Result<Header, Malformed>,
    payload: Bytes,
}

/// The header of a batch with magic 2. Offsets and timestamps of its records are deltas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) first_offset: i64,
    /// The epoch of the leader that has appended it. The checksum does not cover it.
    leader_epoch: i32,
    first_timestamp: i64,
    last_timestamp: i64,
    attributes: i16,
    last_offset_delta: i32,
    pub(crate) producer_id: i64,
    count: i32,
}

impl RawBatch {
    /// Splits the first batch off; none if it is incomplete, as brokers truncate the last one.
    ///
    /// # Errors
    /// If the bytes are no batch. Then the bytes after it cannot be decoded either.
    pub(crate) fn take(bytes: &mut Bytes) -> Result<Option<Self>, Malformed> {
        let Some(length) = bytes.get(8..PREFIX) else { return Ok(None) };
        let length = usize::try_from(i32::from_be_bytes(array(length))).map_err(|_| Malformed::Batch)?;
        if length > bytes.len() - PREFIX {
            return Ok(None);
        }
        let whole = bytes.split_to(PREFIX + length);
        Self::decode(&whole).map(Some)
    }

    /// Decodes the header of the first batch, which may be incomplete.
    ///
    /// # Errors
    /// If the header is incomplete, or the bytes are no batch.
    pub(crate) fn peek(bytes: &Bytes) -> Result<Self, Malformed> {
        let length = bytes.get(8..PREFIX).ok_or(Malformed::Response)?;
        let length = usize::try_from(i32::from_be_bytes(array(length))).map_err(|_| Malformed::Batch)?;
        let header = bytes.get(..HEADER).ok_or(Malformed::Response)?;
        let batch = Self::decode(&bytes.slice_ref(header))?;
        Ok(Self { length: PREFIX + length, ..batch })
    }

    fn decode(whole: &Bytes) -> Result<Self, Malformed> {
        let magic = *whole.get(MAGIC).ok_or(Malformed::Batch)?;
        let first_offset = i64::from_be_bytes(array(&whole[..8]));
        let after = |offset: i64, delta: i32| offset.checked_add(i64::from(delta) + 1).ok_or(Malformed::Batch);
        let unreadable = |next, reason| {
            let header = Err(reason);
            Ok(Self { first_offset, next, length: whole.len(), header, payload: Bytes::new() })
        };
        if magic != 2 {
            // A compressed message set has the offset of its last record.
            return unreadable(after(first_offset, 0)?, Malformed::UnsupportedMagic(magic));
        }
        if whole.len() < HEADER {
            return Err(Malformed::Batch);
        }
        let header = Header {
            first_offset,
            leader_epoch: i32::from_be_bytes(array(&whole[PREFIX..MAGIC])),
            attributes: i16::from_be_bytes(array(&whole[21..23])),
            last_offset_delta: i32::from_be_bytes(array(&whole[23..27])),
            first_timestamp: i64::from_be_bytes(array(&whole[27..35])),
            last_timestamp: i64::from_be_bytes(array(&whole[35..43])),
            producer_id: i64::from_be_bytes(array(&whole[43..51])),
            count: i32::from_be_bytes(array(&whole[57..HEADER])),
        };
        if crc32c::crc32c(&whole[CHECKED..]) != u32::from_be_bytes(array(&whole[17..21])) {
            // What is damaged may be the delta itself. Without compaction, each offset has a record.
            let is_credible = header.last_offset_delta.checked_add(1) == Some(header.count);
            let delta = if is_credible { header.last_offset_delta.max(0) } else { 0 };
            return unreadable(after(first_offset, delta)?, Malformed::Checksum);
        }
        let next = after(first_offset, header.last_offset_delta.max(0))?;
        if header.last_offset_delta < 0 || header.count < 0 {
            return unreadable(next, Malformed::Batch);
        }
        let payload = whole.slice(HEADER..);
        Ok(Self { first_offset, next, length: whole.len(), header: Ok(header), payload })
    }

    /// The first offset of the batch that begins with these bytes, which may be incomplete. None if they cannot follow a batch
    /// with this first offset: where its length is damaged, which the checksum does not cover, they are any bytes of a batch.
    pub(crate) fn peek_following_offset(bytes: &Bytes, first_offset: i64) -> Option<i64> {
        let offset = bytes.first_chunk().map(|bytes| i64::from_be_bytes(*bytes))?;
        let distance = offset.checked_sub(first_offset)?;
        (bytes.get(MAGIC) == Some(&2) && (1..=i64::from(i32::MAX)).contains(&distance)).then_some(offset)
    }

    /// Decompresses up to `limit` bytes and validates the records.
    ///
    /// # Errors
    /// If they cannot be decoded.
    pub(crate) fn decompress(&self, limit: usize) -> Result<DecodedBatch, Malformed> {
        let header = self.header?;
        let codec = header.attributes & COMPRESSION;
        let is_compressed = codec != 0;
        // An uncompressed payload stays in the receive buffer.
        let limit = if is_compressed { limit } else { usize::MAX };
        let batch = DecodedBatch { header, records: decompress(codec, self.payload.clone(), limit)?, is_compressed };
        batch.validate()?;
        Ok(batch)
    }
}

impl Header {
    /// Whether it is a control batch, such as a transaction marker.
    pub(crate) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// The epoch of the leader that has appended it; none where brokers do not write it.
    pub(crate) fn leader_epoch(&self) -> Option<i32> {
        Some(self.leader_epoch).filter(|epoch| *epoch >= 0)
    }

    /// The offset after the last one.
    pub(crate) fn next(&self) -> i64 {
        self.first_offset.saturating_add(i64::from(self.last_offset_delta) + 1)
    }

    /// Whether it belongs to a transaction.
    pub(crate) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// The timestamp of all records, if the topic has `message.timestamp.type=LogAppendTime`.
    fn log_append_time(&self) -> Option<i64> {
        (self.attributes & LOG_APPEND_TIME != 0).then_some(self.last_timestamp)
    }
}

/// A batch with decompressed and validated records.
#[derive(Debug)]
pub(crate) struct DecodedBatch {
    pub(crate) header: Header,
    records: Bytes,
    is_compressed: bool,
}

impl DecodedBatch {
    /// The number of records.
    pub(crate) fn count(&self) -> usize {
        usize::try_from(self.header.count).unwrap_or_default()
    }

    /// Bytes beside the receive buffer.
    pub(crate) fn decompressed_bytes(&self) -> usize {
        if self.is_compressed { self.records.len() } else { 0 }
    }

    /// Whether it is an ABORT marker.
    pub(crate) fn is_abort_marker(&self) -> bool {
        self.iter().next().and_then(|marker| marker.key?.get(2..4)) == Some(&ABORT)
    }

    /// The records, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let mut cursor = Cursor(&self.records);
        // They are valid: an error means the end.
        std::iter::from_fn(move || RecordRef::decode(&mut cursor).ok().map(|record| self.with_absolutes(record)))
    }

    /// Decodes every record once, so that later decoding cannot fail.
    fn validate(&self) -> Result<(), Malformed> {
        let mut cursor = Cursor(&self.records);
        let mut next_delta = 0;
        for _ in 0..self.header.count {
            let record = RecordRef::validate(&mut cursor)?;
            if record.offset < next_delta || record.offset > i64::from(self.header.last_offset_delta) {
                return Err(Malformed::Record);
            }
            next_delta = record.offset + 1;
        }
        if cursor.is_empty() { Ok(()) } else { Err(Malformed::Record) }
    }

    /// Replaces the deltas of a record by its offset and timestamp.
    fn with_absolutes<'a>(&self, mut record: RecordRef<'a>) -> RecordRef<'a> {
        let header = &self.header;
        record.offset += header.first_offset;
        record.timestamp =
            header.log_append_time().unwrap_or_else(|| header.first_timestamp.saturating_add(record.timestamp));
        record
    }
}

/// The slice as an array; it has this length.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
