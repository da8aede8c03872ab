use std::collections::BTreeSet;

use bytes::Bytes;
use thiserror::Error;

use crate::{
    Malformed, RecordRef,
    batch::{DecodedBatch, RawBatch},
    limits::{MAX_DECOMPRESSED_BYTES, MAX_RECORDS},
    memory::FetchPermit,
};

/// Records of one fetch, in the receive buffer. They are validated, so iteration cannot fail; only compressed ones take
/// memory beside the buffer.
#[derive(Debug, Default)]
pub struct Records {
    batches: Vec<DecodedBatch>,
    from: i64,
    /// The end offset, within the last batch or after it.
    to: i64,
    permit: Option<FetchPermit>,
}

/// A batch that can never be read. Its offsets are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the batch of offsets {first_offset} to {last_offset}, of {bytes} bytes, cannot be read: {reason}")]
pub struct UnreadableBatch {
    /// The first skipped offset.
    pub first_offset: i64,
    /// The last skipped offset. The number of records between them is not known.
    pub last_offset: i64,
    /// Bytes of the batch on the topic.
    pub bytes: usize,
    /// Why it cannot be read.
    pub reason: Malformed,
}

/// The result of decoding the batches of a response.
#[derive(Debug)]
pub(crate) struct DecodedBatches {
    pub(crate) records: Records,
    /// The next fetch offset.
    pub(crate) next: i64,
    /// The leader epoch of the last batch before it, if that is known.
    pub(crate) leader_epoch: Option<i32>,
    /// A batch before it that is skipped; then there are no records.
    pub(crate) unreadable: Option<UnreadableBatch>,
}

impl DecodedBatches {
    /// The result for a batch that is too large to receive.
    pub(crate) fn too_large(batch: RawBatch, from: i64) -> Self {
        Self::unreadable(&batch, from, Malformed::TooLarge)
    }

    fn unreadable(batch: &RawBatch, from: i64, reason: Malformed) -> Self {
        let next = batch.next.max(from + 1);
        let unreadable = UnreadableBatch {
            first_offset: batch.first_offset.max(from),
            last_offset: next - 1,
            bytes: batch.length,
            reason,
        };
        Self { records: Records::default(), next, leader_epoch: None, unreadable: Some(unreadable) }
    }
}

impl Records {
    /// Decodes the batches of a response to a fetch of the offset `from`, without records of these aborted transactions
    /// (producer ids and first offsets). Responses begin with the whole batch that has the offset, and may end with an
    /// incomplete one.
    ///
    /// Decoding ends before a batch that cannot be read; if that is the first one with records to return, it is returned as
    /// unreadable. Of the first batch up to `max_first_bytes` are decompressed.
    ///
    /// # Errors
    /// If the bytes do not begin with a batch.
    pub(crate) fn decode(
        bytes: Bytes,
        from: i64,
        aborted: Vec<(i64, i64)>,
        max_first_bytes: usize,
    ) -> Result<DecodedBatches, Malformed> {
        let decoder = Decoder {
            records: Self { from, to: i64::MAX, ..Self::default() },
            next: from,
            leader_epoch: None,
            aborted: AbortedTransactions::new(aborted),
            max_first_bytes,
            room: MAX_DECOMPRESSED_BYTES,
            count: 0,
        };
        decoder.decode(bytes)
    }

    /// Keeps the permit for as long as the records live. Without records it is free, also for the next fetch of the same consumer, which may
    /// begin while this one is looked at.
    pub(crate) fn keep(&mut self, permit: Option<FetchPermit>) {
        self.permit = permit.filter(|_| !self.batches.is_empty());
    }

    /// Frees the records, and returns the permit of their memory: no other consumer that shares it has records until that is dropped.
    /// Keep it until something else bounds what was made of the records.
    pub fn into_permit(self) -> Option<FetchPermit> {
        self.permit
    }

    /// The records, in order.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let wanted = self.from..self.to;
        self.batches.iter().flat_map(DecodedBatch::iter).filter(move |record| wanted.contains(&record.offset))
    }

    /// An upper bound of their number: records before the fetch offset may be counted.
    pub fn max_len(&self) -> usize {
        self.batches.iter().map(DecodedBatch::count).sum::<usize>().min(MAX_RECORDS)
    }

    /// The leader epoch of the record or batch right before an offset within these records, if that is known: whoever goes on from there
    /// stores both.
    pub fn leader_epoch_before(&self, offset: i64) -> Option<i32> {
        let before = self.batches.iter().rev().find(|batch| batch.header.first_offset < offset)?;
        // Between them there may have been another epoch: the end of this one would look like a truncated log.
        before.header.leader_epoch().filter(|_| offset <= before.header.next())
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

/// Decodes the batches of a response.
#[derive(Debug)]
struct Decoder {
    /// What was decoded.
    records: Records,
    /// The next fetch offset.
    next: i64,
    /// The leader epoch of the last batch before it.
    leader_epoch: Option<i32>,
    aborted: AbortedTransactions,
    /// Of the first batch with records to return, so many bytes are decompressed at most.
    max_first_bytes: usize,
    /// Bytes that may be decompressed of those after it.
    room: usize,
    /// Records in the decoded batches.
    count: usize,
}

impl Decoder {
    fn decode(mut self, mut bytes: Bytes) -> Result<DecodedBatches, Malformed> {
        while self.room > 0 && self.count <= MAX_RECORDS {
            let raw = match self.take(&mut bytes) {
                Ok(Some(raw)) => raw,
                Ok(None) => break,
                // The error is that of the next fetch, which begins here.
                Err(_) if self.next > self.records.from => break,
                Err(error) => return Err(error),
            };
            match self.read(&raw) {
                Ok(Some(batch)) => self.push(raw.next, batch),
                Ok(None) => {}
                Err(_) if !self.records.batches.is_empty() => break,
                Err(reason) => return Ok(DecodedBatches::unreadable(&raw, self.next, reason)),
            }
        }
        if self.count > MAX_RECORDS {
            let rest = self.records.iter().nth(MAX_RECORDS).map(|record| record.offset);
            if let Some(rest) = rest {
                (self.records.to, self.next) = (rest, rest);
                self.leader_epoch = self.records.leader_epoch_before(rest);
            }
        }
        let Self { records, next, leader_epoch, .. } = self;
        Ok(DecodedBatches { records, next, leader_epoch, unreadable: None })
    }

    /// Takes the next batch from the bytes, if it is whole.
    fn take(&self, bytes: &mut Bytes) -> Result<Option<RawBatch>, Malformed> {
        while let Some(mut raw) = RawBatch::take(bytes)? {
            if let Err(Malformed::Checksum) = raw.header {
                // Its own fields may be damaged; those of the next batch are not.
                let following = RawBatch::peek_following_offset(bytes, raw.first_offset);
                raw.next = following.unwrap_or(raw.next);
                // Brokers find batches by these fields too, and return it for offsets after it.
                if following.is_some_and(|following| following <= self.next) {
                    continue;
                }
            }
            return Ok(Some(raw));
        }
        Ok(None)
    }

    /// Decodes a batch; none if it has no records to return.
    fn read(&mut self, raw: &RawBatch) -> Result<Option<DecodedBatch>, Malformed> {
        let from = self.records.from;
        let header = match raw.header {
            Ok(header) => header,
            // The offset of an older format is right.
            Err(Malformed::UnsupportedMagic(_)) if raw.next <= from => return Ok(None),
            Err(reason) => return Err(reason),
        };
        self.aborted.start_up_to(raw.next - 1);
        let max_bytes = if self.records.batches.is_empty() { self.max_first_bytes } else { self.room };
        if header.is_control() {
            if raw.decompress(max_bytes)?.is_abort_marker() {
                self.aborted.end(header.producer_id);
            }
        } else {
            let is_aborted = header.is_transactional() && self.aborted.contains(header.producer_id);
            if raw.next > from && !is_aborted {
                return raw.decompress(max_bytes).map(Some);
            }
        }
        (self.next, self.leader_epoch) = (self.next.max(raw.next), header.leader_epoch());
        Ok(None)
    }

    /// Adds a batch, after which `next` is the next offset.
    fn push(&mut self, next: i64, batch: DecodedBatch) {
        (self.next, self.leader_epoch) = (next, batch.header.leader_epoch());
        self.room = self.room.saturating_sub(batch.decompressed_bytes());
        self.count += batch.count();
        self.records.batches.push(batch);
    }
}

/// Aborted transactions of a response, while its batches are decoded.
#[derive(Debug)]
struct AbortedTransactions {
    /// First offsets and producer ids of those that start later, the next one last.
    later: Vec<(i64, i64)>,
    /// Producer ids of those that have started and not ended.
    producers: BTreeSet<i64>,
}

impl AbortedTransactions {
    /// From producer ids and first offsets.
    fn new(transactions: Vec<(i64, i64)>) -> Self {
        let mut later: Vec<_> = transactions.into_iter().map(|(producer, first)| (first, producer)).collect();
        later.sort_unstable_by(|one, other| other.cmp(one));
        Self { later, producers: BTreeSet::new() }
    }

    /// Starts those whose first offset is not above this one.
    fn start_up_to(&mut self, offset: i64) {
        while let Some((_, producer)) = self.later.pop_if(|(first, _)| *first <= offset) {
            self.producers.insert(producer);
        }
    }

    fn contains(&self, producer: i64) -> bool {
        self.producers.contains(&producer)
    }

    /// Ends the transaction of a producer, at its marker.
    fn end(&mut self, producer: i64) {
        self.producers.remove(&producer);
    }
}

#[cfg(test)]
mod tests;
