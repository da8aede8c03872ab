use std::sync::Arc;

use chrono::{DateTime, Utc};
use codec::{
    event::ReceivedEvent,
    headers::{Headers, TRACEPARENT},
};
use kafka::{Fetched, RecordAndOffset, RecordRef, UnreadableBatch};
use smol::future::yield_now;
use telemetry::{Span, TraceContext};
use uuid::Uuid;

use super::{
    budget::{Budget, BudgetPermit},
    spans,
};
use crate::{
    Settings,
    state::{DeadLetter, SavedPosition},
};

/// Records after which decoding yields to other tasks, such as the one with the next statement for SQLite.
const YIELD_INTERVAL: usize = 256;
/// The largest record whose content a dead letter keeps: twice the default `max.message.bytes`. Also what all dead letters of a fetch may
/// take: a few kilobytes that are compressed may stand for hundreds of records of nearly that size.
const MAX_DEAD_LETTER_BYTES: usize = 2 * 1024 * 1024;
/// What the allocator takes at most beside the bytes of a header's name or value.
const ALLOCATION_BYTES: usize = 32;
/// Bytes of a span with its attributes.
const SPAN_BYTES: usize = 1024;

/// The decoded records of one fetch. An event takes a fraction of the memory of its record, whose buffer is then free for the
/// next fetch.
#[derive(Debug)]
pub(super) struct FetchedBatch {
    pub(super) partition: i32,
    /// Whether it is of a copy of another member's partition.
    pub(super) is_standby: bool,
    pub(super) events: Vec<ReceivedEvent>,
    pub(super) dead_letters: Vec<DeadLetter>,
    /// The position after the batch.
    pub(super) position: SavedPosition,
    /// One for each traced record.
    pub(super) spans: Vec<Span>,
    /// Its part of the budget.
    permit: Option<BudgetPermit>,
}

/// Where a batch was fetched from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) topic_id: Option<Uuid>,
    pub(super) partition: i32,
    /// Of a copy of another member's partition, the offset that is not to be reached.
    pub(super) standby_limit: Option<i64>,
}

impl FetchedBatch {
    /// Decodes the records of a fetch, and waits until the budget has bytes for them. Until then it has the permit of the memory that all
    /// fetchers share. It ends before a record whose dead letter would make those of the batch too large: that record is fetched again.
    pub(super) async fn decode(settings: &Settings, source: Source, fetched: Fetched, budget: &Arc<Budget>) -> Self {
        let Source { topic_id, partition, standby_limit } = source;
        let Fetched { records, next: end, leader_epoch, .. } = fetched;
        let limit = source.limit(end);
        let mut dead_letter_bytes = 0;
        let position = SavedPosition { next: limit, last_timestamp: None, topic_id, leader_epoch };
        let mut batch = Self {
            events: Vec::with_capacity(records.max_len()),
            is_standby: standby_limit.is_some(),
            ..Self::empty(partition, position)
        };
        for record in records.iter().take_while(|record| record.offset < limit) {
            if batch.len() % YIELD_INTERVAL == YIELD_INTERVAL - 1 {
                yield_now().await;
            }
            match ReceivedEvent::decode(record.value.unwrap_or_default()) {
                Ok(mut event) => {
                    if event.version.is_none() {
                        // Events of the original services have no time; the record has one.
                        event.time = event.time.or(record_time(record.timestamp));
                    }
                    log_event(partition, &record, &event);
                    batch.events.push(event);
                }
                // The owner has it.
                Err(_) if batch.is_standby => {}
                Err(error) => {
                    let (error, bytes) = (error.to_string(), bytes(&record));
                    let kept = if bytes > MAX_DEAD_LETTER_BYTES { 0 } else { bytes };
                    let more = size_of::<DeadLetter>() + error.len() + kept;
                    if dead_letter_bytes > 0 && dead_letter_bytes + more > MAX_DEAD_LETTER_BYTES {
                        batch.position.next = record.offset;
                        break;
                    }
                    dead_letter_bytes += more;
                    batch.dead_letters.push(dead_letter(partition, &record, bytes, error));
                }
            }
            batch.position.last_timestamp = Some(record.timestamp);
        }
        batch.events.shrink_to_fit();
        let next = batch.position.next;
        if next < end {
            batch.position.leader_epoch = records.leader_epoch_before(next);
        }
        if !batch.is_standby {
            // The owner's is the one that counts the record.
            batch.spans = spans::start(settings, partition, &records, next);
        }
        // The records take more than what is made of them, and the wait may be long.
        let memory = records.into_permit();
        let (events, spans) = (batch.events.len() * size_of::<ReceivedEvent>(), batch.spans.len() * SPAN_BYTES);
        batch.permit = Some(budget.acquire(events + spans + dead_letter_bytes).await);
        drop(memory);
        batch
    }

    /// One dead letter for a record batch that cannot be read. It has no content, which is too large or corrupt; its error has
    /// the offsets.
    pub(super) fn unreadable(source: Source, unreadable: UnreadableBatch, next: i64) -> Self {
        let Source { topic_id, partition, standby_limit } = source;
        let next = source.limit(next);
        let position = SavedPosition { next, last_timestamp: None, topic_id, leader_epoch: None };
        if standby_limit.is_some() {
            return Self { is_standby: true, ..Self::empty(partition, position) };
        }
        let (offset, error) = (unreadable.first_offset, unreadable.to_string());
        tracing::error!(partition, offset, error, "a batch cannot be read and is dead-lettered");
        let dead_letter = DeadLetter { partition, offset, key: None, value: None, headers: Headers::new(), error };
        let mut batch = Self::empty(partition, position);
        batch.dead_letters.push(dead_letter);
        batch
    }

    /// A batch that only moves the position.
    pub(super) fn empty(partition: i32, position: SavedPosition) -> Self {
        let (events, dead_letters, spans) = (Vec::new(), Vec::new(), Vec::new());
        Self { partition, is_standby: false, events, dead_letters, position, spans, permit: None }
    }

    /// The number of records.
    pub(super) fn len(&self) -> usize {
        self.events.len() + self.dead_letters.len()
    }
}

impl Source {
    /// The offset to go on from after a fetch up to `next`.
    pub(super) fn limit(self, next: i64) -> i64 {
        self.standby_limit.map_or(next, |limit| next.min(limit))
    }
}

/// The dead letter of a record that takes so many bytes.
fn dead_letter(partition: i32, record: &RecordRef<'_>, bytes: usize, error: String) -> DeadLetter {
    let offset = record.offset;
    tracing::warn!(partition, offset, error, "a record cannot be decoded and is dead-lettered");
    if bytes > MAX_DEAD_LETTER_BYTES {
        let error = format!("{error}; of its {bytes} bytes none are kept: they are on its topic only");
        return DeadLetter { partition, offset, key: None, value: None, headers: Headers::new(), error };
    }
    let RecordAndOffset { record: kafka::Record { key, value, headers, .. }, .. } = record.to_record();
    DeadLetter { partition, offset, key, value, headers, error }
}

/// The time of a record; none for -1, which stands for no timestamp.
fn record_time(timestamp: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(timestamp).filter(|_| timestamp >= 0)
}

/// Bytes that key, value and headers take.
fn bytes(record: &RecordRef<'_>) -> usize {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let allocated = |length: usize| if length == 0 { 0 } else { length + ALLOCATION_BYTES };
    // An empty header takes memory too.
    let header = size_of::<(Vec<u8>, Option<Vec<u8>>)>();
    let headers: usize =
        record.headers().map(|(name, value)| header + allocated(name.len()) + allocated(length(value))).sum();
    length(record.key) + length(record.value) + headers
}

fn log_event(partition: i32, record: &RecordRef<'_>, event: &ReceivedEvent) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        let trace = TraceContext::continue_from(record.header(TRACEPARENT));
        let (trace_id, patient_id, version) = (trace.trace_id(), event.patient_id, event.version);
        tracing::debug!(trace_id, %patient_id, version, kind = ?event.kind, partition, offset = record.offset, "event read");
    }
}

#[cfg(test)]
mod tests {
    use config::{Environment, Reader};
    use kafka::{
        Record,
        testing::{self, Codec},
    };

    use super::*;

    fn fetched(records: &[Record]) -> Fetched {
        from_decoded(testing::decode(testing::batch(Codec::None, records), 0, Vec::new(), 1 << 20).unwrap())
    }

    fn from_decoded(decoded: testing::DecodedRecords) -> Fetched {
        let testing::DecodedRecords { records, next, leader_epoch, unreadable } = decoded;
        Fetched { records, next, leader_epoch, high_watermark: next, last_stable_offset: next, unreadable }
    }

    fn event(milliseconds: i64, value: Option<Vec<u8>>) -> Record {
        let timestamp = DateTime::from_timestamp_millis(milliseconds).unwrap();
        Record { key: None, value, headers: Vec::new(), timestamp }
    }

    fn created() -> Option<Vec<u8>> {
        Some(testbed::patient::created())
    }

    #[test]
    fn records_are_freed_while_what_was_made_of_them_waits_for_the_budget() {
        let bytes = testing::batch(Codec::None, &[event(10, created()), event(11, None)]);
        let decoded = testing::decode(bytes.clone(), 0, Vec::new(), 1 << 20).unwrap();
        let fetched = from_decoded(decoded);
        let settings = Settings::read(&mut Reader::new(Environment::empty()));
        let source = Source { topic_id: None, partition: 0, standby_limit: None };
        smol::block_on(async {
            let budget = Budget::new(1);
            let others = budget.acquire(1).await;
            let mut decode = Box::pin(FetchedBatch::decode(&settings, source, fetched, &budget));
            assert!(smol::future::poll_once(&mut decode).await.is_none(), "others have the budget");
            assert!(bytes.is_unique());
            drop(others);
            assert_eq!(decode.await.len(), 2);
        });
    }

    /// Two bytes of a compressed batch are an empty header, which takes 48 bytes in memory.
    #[test]
    fn the_dead_letters_of_one_fetch_are_bounded_and_the_rest_is_fetched_again() {
        let undecodable = Record { headers: vec![(Vec::new(), None); 43_600], ..event(10, Some(b"no event".to_vec())) };
        let records = [vec![event(9, created())], vec![undecodable; 5], vec![event(11, created())]].concat();
        let bytes = testing::batch(Codec::Zstd, &records);
        assert!(bytes.len() < 5_000, "{}", bytes.len());
        let settings = Settings::read(&mut Reader::new(Environment::empty()));
        let source = Source { topic_id: None, partition: 0, standby_limit: None };
        smol::block_on(async {
            let (mut next, mut events, mut dead_letters) = (0, 0, 0);
            while next < 7 {
                let fetched = from_decoded(testing::decode(bytes.clone(), next, Vec::new(), 16 << 20).unwrap());
                let batch = FetchedBatch::decode(&settings, source, fetched, &Budget::new(1 << 20)).await;
                let kept: usize = batch.dead_letters.iter().map(|letter| letter.headers.capacity() * 48).sum();
                assert!(kept <= MAX_DEAD_LETTER_BYTES, "{kept} bytes from {next} on");
                assert_eq!(batch.len() as i64, batch.position.next - next, "each record once");
                let last = if batch.position.next == 7 { 11 } else { 10 };
                assert_eq!(batch.position.last_timestamp, Some(last), "of the record before the next");
                events += batch.events.len();
                dead_letters += batch.dead_letters.len();
                next = batch.position.next;
            }
            assert_eq!((events, dead_letters), (2, 5));
        });
    }

    #[test]
    fn a_copy_ends_at_its_limit_and_has_no_dead_letters() {
        let records = [event(10, created()), event(11, None), event(12, created()), event(13, created())];
        let settings = Settings::read(&mut Reader::new(Environment::empty()));
        let decode = |standby_limit| {
            let source = Source { topic_id: None, partition: 0, standby_limit };
            smol::block_on(FetchedBatch::decode(&settings, source, fetched(&records), &Budget::new(1 << 20)))
        };
        let content = |batch: &FetchedBatch| (batch.events.len(), batch.dead_letters.len(), batch.position.next);
        let own = decode(None);
        assert_eq!((content(&own), own.is_standby), ((3, 1, 4), false));
        let copy = decode(Some(2));
        assert_eq!((content(&copy), copy.is_standby), ((1, 0, 2), true));
        assert_eq!(copy.position.last_timestamp, Some(11), "of the record before the next");
        assert_eq!(content(&decode(Some(9))), (3, 0, 4), "no further than what was fetched");
    }
}
