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
/// The largest record whose content a dead letter keeps: twice the default `max.message.bytes`.
const MAX_DEAD_LETTER_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of a span with its attributes.
const SPAN_BYTES: usize = 1024;

/// The decoded records of one fetch. An event takes a fraction of the memory of its record, whose buffer is then free for the
/// next fetch.
#[derive(Debug)]
pub(super) struct FetchedBatch {
    pub(super) partition: i32,
    pub(super) events: Vec<ReceivedEvent>,
    pub(super) dead_letters: Vec<DeadLetter>,
    /// The position after the batch.
    pub(super) position: SavedPosition,
    /// One for each traced record.
    pub(super) spans: Vec<Span>,
    /// Its part of the budget.
    permit: Option<BudgetPermit>,
}

impl FetchedBatch {
    /// Decodes the records of a fetch, and waits until the budget has bytes for them.
    pub(super) async fn decode(
        (settings, topic_id): (&Settings, Option<Uuid>),
        partition: i32,
        fetched: Fetched,
        budget: &Arc<Budget>,
    ) -> Self {
        let Fetched { records, next, .. } = fetched;
        let mut undecodable = Vec::new();
        let mut batch = Self {
            spans: spans::start(settings, partition, &records),
            events: Vec::with_capacity(records.max_len()),
            ..Self::empty(partition, SavedPosition { next, last_timestamp: None, topic_id })
        };
        for record in records.iter() {
            if (batch.events.len() + undecodable.len()) % YIELD_INTERVAL == YIELD_INTERVAL - 1 {
                yield_now().await;
            }
            batch.position.last_timestamp = Some(record.timestamp);
            match ReceivedEvent::decode(record.value.unwrap_or_default()) {
                Ok(mut event) => {
                    if event.version.is_none() {
                        // Events of the original services have no time; the record has one.
                        event.time = event.time.or(record_time(record.timestamp));
                    }
                    log_event(partition, &record, &event);
                    batch.events.push(event);
                }
                Err(error) => undecodable.push((record, error.to_string())),
            }
        }
        batch.events.shrink_to_fit();
        let dead_letter_bytes =
            |(record, error): &(RecordRef<'_>, String)| size_of::<DeadLetter>() + error.len() + kept_bytes(record);
        let dead_letters: usize = undecodable.iter().map(dead_letter_bytes).sum();
        let (events, spans) = (batch.events.len() * size_of::<ReceivedEvent>(), batch.spans.len() * SPAN_BYTES);
        batch.permit = Some(budget.acquire(events + spans + dead_letters).await);
        batch.dead_letters.extend(undecodable.iter().map(|(record, error)| dead_letter(partition, record, error)));
        batch
    }

    /// One dead letter for a record batch that cannot be read. It has no content, which is too large or corrupt; its error has
    /// the offsets.
    pub(super) fn unreadable(topic_id: Option<Uuid>, partition: i32, unreadable: UnreadableBatch, next: i64) -> Self {
        let (offset, error) = (unreadable.first_offset, unreadable.to_string());
        tracing::error!(partition, offset, error, "a batch cannot be read and is dead-lettered");
        let dead_letter = DeadLetter { partition, offset, key: None, value: None, headers: Headers::new(), error };
        let mut batch = Self::empty(partition, SavedPosition { next, last_timestamp: None, topic_id });
        batch.dead_letters.push(dead_letter);
        batch
    }

    /// A batch that only moves the position.
    pub(super) fn empty(partition: i32, position: SavedPosition) -> Self {
        Self { partition, events: Vec::new(), dead_letters: Vec::new(), position, spans: Vec::new(), permit: None }
    }

    /// The number of records.
    pub(super) fn len(&self) -> usize {
        self.events.len() + self.dead_letters.len()
    }
}

fn dead_letter(partition: i32, record: &RecordRef<'_>, error: &str) -> DeadLetter {
    let offset = record.offset;
    tracing::warn!(partition, offset, error, "a record cannot be decoded and is dead-lettered");
    let bytes = bytes(record);
    if bytes > MAX_DEAD_LETTER_BYTES {
        let error = format!("{error}; of its {bytes} bytes none are kept: they are on its topic only");
        return DeadLetter { partition, offset, key: None, value: None, headers: Headers::new(), error };
    }
    let RecordAndOffset { record: kafka::Record { key, value, headers, .. }, .. } = record.to_record();
    DeadLetter { partition, offset, key, value, headers, error: error.to_owned() }
}

/// The time of a record; none for -1, which stands for no timestamp.
fn record_time(timestamp: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(timestamp).filter(|_| timestamp >= 0)
}

/// Bytes of key, value and headers.
fn bytes(record: &RecordRef<'_>) -> usize {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    // An empty header takes memory too.
    let headers: usize = record
        .headers()
        .map(|(name, value)| size_of::<(Vec<u8>, Option<Vec<u8>>)>() + name.len() + length(value))
        .sum();
    length(record.key) + length(record.value) + headers
}

/// Bytes of the record that its dead letter keeps.
fn kept_bytes(record: &RecordRef<'_>) -> usize {
    Some(bytes(record)).filter(|bytes| *bytes <= MAX_DEAD_LETTER_BYTES).unwrap_or_default()
}

fn log_event(partition: i32, record: &RecordRef<'_>, event: &ReceivedEvent) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        let trace = TraceContext::continue_from(record.header(TRACEPARENT));
        let (trace_id, patient_id, version) = (trace.trace_id(), event.patient_id, event.version);
        tracing::debug!(trace_id, %patient_id, version, kind = ?event.kind, partition, offset = record.offset, "event read");
    }
}
