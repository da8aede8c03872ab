use std::sync::Arc;

use chrono::{DateTime, Utc};
use codec::{
    event::Received,
    headers::{Headers, TRACEPARENT},
};
use kafka::{Fetched, RecordAndOffset, RecordRef, Unreadable};
use smol::future::yield_now;
use telemetry::{Span, TraceContext};
use uuid::Uuid;

use super::{
    budget::{Budget, Share},
    spans,
};
use crate::state::{DeadLetter, SavedPosition};

/// Records after which whoever else is ready gets the thread: among them the one that has SQLite's next statement.
const DECODED_AT_ONCE: usize = 256;
/// Bytes of a record that a dead letter has at most, twice what brokers take unless they are told otherwise. Of a larger
/// one it has none.
const LARGEST_LETTER: usize = 2 * 1024 * 1024;
/// Bytes that a span takes, with its attributes.
const SPAN_BYTES: usize = 1024;

/// What one fetch of a partition gave, decoded: an event takes a fraction of its record's memory, which is then free for
/// the next fetch.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) partition: i32,
    pub(super) events: Vec<Received>,
    pub(super) dead_letters: Vec<DeadLetter>,
    /// Where the partition goes on afterwards.
    pub(super) position: SavedPosition,
    /// One for each record that is traced.
    pub(super) spans: Vec<Span>,
    /// The memory that it takes.
    share: Option<Share>,
}

impl Batch {
    /// A batch of what was fetched from a topic with this name and this id, once there is memory for it.
    pub(super) async fn decode(
        (topic, topic_id): (&str, Option<Uuid>),
        partition: i32,
        fetched: Fetched,
        budget: &Arc<Budget>,
    ) -> Self {
        let Fetched { records, next, .. } = fetched;
        let mut no_events = Vec::new();
        let mut batch = Self {
            spans: spans::begin(topic, partition, &records),
            events: Vec::with_capacity(records.at_most()),
            ..Self::empty(partition, SavedPosition { next, last_timestamp: None, topic_id })
        };
        for record in records.iter() {
            if (batch.events.len() + no_events.len()) % DECODED_AT_ONCE == DECODED_AT_ONCE - 1 {
                yield_now().await;
            }
            batch.position.last_timestamp = Some(record.timestamp);
            match Received::decode(record.value.unwrap_or_default()) {
                Ok(mut event) => {
                    if event.version.is_none() {
                        // An original's event does not tell when it happened; its record tells when it was made.
                        event.time = event.time.or(time(record.timestamp));
                    }
                    log_event(partition, &record, &event);
                    batch.events.push(event);
                }
                Err(error) => no_events.push((record, error.to_string())),
            }
        }
        batch.events.shrink_to_fit();
        let letter =
            |(record, error): &(RecordRef<'_>, String)| size_of::<DeadLetter>() + error.len() + kept_bytes(record);
        let letters: usize = no_events.iter().map(letter).sum();
        let (events, spans) = (batch.events.len() * size_of::<Received>(), batch.spans.len() * SPAN_BYTES);
        batch.share = Some(budget.take(events + spans + letters).await);
        batch.dead_letters.extend(no_events.iter().map(|(record, error)| dead_letter(partition, record, error)));
        batch
    }

    /// A batch of Kafka's that cannot be read, now or later: one dead letter stands for it. It has no bytes of it, which are
    /// too many to be kept, or damaged; the reason says which offsets they have on the topic.
    pub(super) fn unreadable(topic_id: Option<Uuid>, partition: i32, unreadable: Unreadable, next: i64) -> Self {
        let (offset, error) = (unreadable.first_offset, unreadable.to_string());
        tracing::error!(partition, offset, error, "a batch cannot be read; it becomes a dead letter");
        let letter = DeadLetter { partition, offset, key: None, value: None, headers: Headers::new(), error };
        let mut batch = Self::empty(partition, SavedPosition { next, last_timestamp: None, topic_id });
        batch.dead_letters.push(letter);
        batch
    }

    /// A batch that only moves the position.
    pub(super) fn empty(partition: i32, position: SavedPosition) -> Self {
        Self { partition, events: Vec::new(), dead_letters: Vec::new(), position, spans: Vec::new(), share: None }
    }

    /// How many records it has.
    pub(super) fn len(&self) -> usize {
        self.events.len() + self.dead_letters.len()
    }
}

fn dead_letter(partition: i32, record: &RecordRef<'_>, error: &str) -> DeadLetter {
    let offset = record.offset;
    tracing::warn!(partition, offset, error, "a record is no event; it becomes a dead letter");
    let bytes = bytes(record);
    if bytes > LARGEST_LETTER {
        let error = format!("{error}; of its {bytes} bytes none are kept: they are on its topic only");
        return DeadLetter { partition, offset, key: None, value: None, headers: Headers::new(), error };
    }
    let RecordAndOffset { record: kafka::Record { key, value, headers, .. }, .. } = record.to_record();
    DeadLetter { partition, offset, key, value, headers, error: error.to_owned() }
}

/// The time of a record; none if it has none, which Kafka writes as -1.
fn time(timestamp: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(timestamp).filter(|_| timestamp >= 0)
}

/// Bytes of a record's own: key, value and headers.
fn bytes(record: &RecordRef<'_>) -> usize {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    // A header without anything takes memory too.
    let headers: usize = record
        .headers()
        .map(|(name, value)| size_of::<(Vec<u8>, Option<Vec<u8>>)>() + name.len() + length(value))
        .sum();
    length(record.key) + length(record.value) + headers
}

/// Those of them that a dead letter has.
fn kept_bytes(record: &RecordRef<'_>) -> usize {
    Some(bytes(record)).filter(|bytes| *bytes <= LARGEST_LETTER).unwrap_or_default()
}

fn log_event(partition: i32, record: &RecordRef<'_>, event: &Received) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        let trace = TraceContext::continue_from(record.header(TRACEPARENT));
        let (trace_id, patient_id, version) = (trace.trace_id(), event.patient_id, event.version);
        tracing::debug!(trace_id, %patient_id, version, kind = ?event.kind, partition, offset = record.offset, "event read");
    }
}
