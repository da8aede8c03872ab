use std::{collections::BTreeSet, fmt};

use bytes::Bytes;
use smol::lock::SemaphoreGuard;

use crate::{
    Malformed, RecordRef,
    batch::{Batch, RawBatch},
};

/// Bytes of one batch at most, as it is sent and as it is decompressed. What is larger is [`Unreadable`].
pub(crate) const LARGEST_BATCH: usize = 16 * 1024 * 1024;
/// Bytes that the batches of one fetch are decompressed to, unless the first alone has more. What comes after them is left
/// for the next fetch.
pub(crate) const DECOMPRESSED_AT_ONCE: usize = 2 * 1024 * 1024;
/// Records of one fetch at most: a batch of empty ones may have millions, and whoever reads them takes memory for each.
const RECORDS_AT_ONCE: usize = 16 * 1024;

/// Records of one fetch, in the bytes that the broker sent. They have been checked as a whole, so that reading them
/// cannot fail; only compressed ones take memory beside those bytes.
#[derive(Debug, Default)]
pub struct Records {
    batches: Vec<Batch>,
    from: i64,
    /// Where they end, within the last batch or after it.
    to: i64,
    /// The right to take more memory than usual, as long as these are there.
    pub(crate) large: Option<SemaphoreGuard<'static>>,
}

/// A batch that cannot be read, now or later. Its offsets are passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The first offset that is passed.
    pub first_offset: i64,
    /// The last one. How many records there are between, only the batch could tell.
    pub last_offset: i64,
    /// The bytes of the batch, as they are on the topic.
    pub bytes: usize,
    /// What is wrong with it.
    pub reason: Malformed,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first_offset, last_offset, bytes, reason } = self;
        write!(f, "the batch of offsets {first_offset} to {last_offset}, of {bytes} bytes, cannot be read: {reason}")
    }
}

/// What the bytes that a broker sent come to.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) records: Records,
    /// The offset to ask for next.
    pub(crate) next: i64,
    /// What comes before it and cannot be read, if there are no records.
    pub(crate) unreadable: Option<Unreadable>,
}

impl Read {
    /// What a batch comes to that is too large to be received.
    pub(crate) fn too_large(batch: RawBatch, from: i64) -> Self {
        Self::unreadable(&batch, from, Malformed::TooLarge)
    }

    fn unreadable(batch: &RawBatch, from: i64, reason: Malformed) -> Self {
        let next = batch.next.max(from + 1);
        let unreadable = Unreadable {
            first_offset: batch.first_offset.max(from),
            last_offset: next - 1,
            bytes: batch.length,
            reason,
        };
        Self { records: Records::default(), next, unreadable: Some(unreadable) }
    }
}

impl Records {
    /// Reads what a broker sent for the offset `from`, without what belongs to these aborted transactions: producers and
    /// first offsets. Brokers begin with the whole batch that has the offset, and may end with a part of one.
    ///
    /// Reading ends before a batch that cannot be read, unless it is the first of which there is something to say. Of that
    /// one up to `largest` bytes are decompressed.
    ///
    /// # Errors
    /// If what was sent are no batches at all.
    pub(crate) fn read(
        mut bytes: Bytes,
        from: i64,
        aborted: Vec<(i64, i64)>,
        largest: usize,
    ) -> Result<Read, Malformed> {
        let mut aborted = Aborted::new(aborted);
        let mut records = Self { from, to: i64::MAX, ..Self::default() };
        let (mut next, mut room, mut count) = (from, DECOMPRESSED_AT_ONCE, 0);
        while let Some(raw) = RawBatch::take(&mut bytes)? {
            let is_first = records.batches.is_empty();
            let batch = match raw.header {
                Ok(header) => {
                    aborted.begin_up_to(raw.next - 1);
                    let is_aborted = header.is_transactional() && aborted.has(header.producer_id);
                    if !header.is_control() && (raw.next <= from || is_aborted) {
                        next = next.max(raw.next);
                        continue;
                    }
                    match raw.records(if is_first { largest } else { room }) {
                        Ok(control) if header.is_control() => {
                            if control.is_abort() {
                                aborted.end(header.producer_id);
                            }
                            next = next.max(raw.next);
                            continue;
                        }
                        batch => batch,
                    }
                }
                // The offset of what is older than this format is right, that of what is damaged may be anything.
                Err(Malformed::Version(_)) if raw.next <= from => continue,
                Err(reason) => Err(reason),
            };
            match batch {
                Ok(batch) => {
                    room = room.saturating_sub(batch.decompressed());
                    next = raw.next;
                    count += batch.count();
                    records.batches.push(batch);
                }
                Err(_) if !is_first => break,
                Err(reason) => return Ok(Read::unreadable(&raw, next, reason)),
            }
            if room == 0 || count > RECORDS_AT_ONCE {
                break;
            }
        }
        if count > RECORDS_AT_ONCE {
            let left = records.iter().nth(RECORDS_AT_ONCE).map(|record| record.offset);
            if let Some(left) = left {
                (records.to, next) = (left, left);
            }
        }
        Ok(Read { records, next, unreadable: None })
    }

    /// The records, in order.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let wanted = self.from..self.to;
        self.batches.iter().flat_map(Batch::iter).filter(move |record| wanted.contains(&record.offset))
    }

    /// How many there are at most: those of their batches that come before the asked offset may be among them.
    pub fn at_most(&self) -> usize {
        self.batches.iter().map(Batch::count).sum::<usize>().min(RECORDS_AT_ONCE)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

/// The transactions that were aborted among what was fetched.
#[derive(Debug)]
struct Aborted {
    /// First offsets and producers of those that begin later, the next one last.
    later: Vec<(i64, i64)>,
    /// The producers of those that have begun and not ended.
    producers: BTreeSet<i64>,
}

impl Aborted {
    /// Of producers and first offsets.
    fn new(transactions: Vec<(i64, i64)>) -> Self {
        let mut later: Vec<_> = transactions.into_iter().map(|(producer, first)| (first, producer)).collect();
        later.sort_unstable_by(|one, other| other.cmp(one));
        Self { later, producers: BTreeSet::new() }
    }

    /// Those that begin at or before an offset have begun.
    fn begin_up_to(&mut self, offset: i64) {
        while let Some((_, producer)) = self.later.pop_if(|(first, _)| *first <= offset) {
            self.producers.insert(producer);
        }
    }

    fn has(&self, producer: i64) -> bool {
        self.producers.contains(&producer)
    }

    /// The marker at the end of a producer's transaction has come.
    fn end(&mut self, producer: i64) {
        self.producers.remove(&producer);
    }
}

#[cfg(test)]
mod tests;
