use codec::{
    event::Received,
    headers::{Headers, TRACEPARENT},
};
use kafka::{Fetched, RecordAndOffset, RecordRef, Unreadable};
use smol::future::yield_now;
use telemetry::{Span, TraceContext};

use super::processing;
use crate::state::{DeadLetter, SavedPosition};

/// Records after which whoever else is ready gets the thread: among them the one that has SQLite's next statement.
const DECODED_AT_ONCE: usize = 256;

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
}

impl Batch {
    /// A batch of what was fetched.
    pub(super) async fn decode(topic: &str, partition: i32, fetched: Fetched) -> Self {
        let Fetched { records, next, .. } = fetched;
        let mut batch = Self {
            spans: processing::begin(topic, partition, &records),
            events: Vec::with_capacity(records.at_most()),
            ..Self::empty(partition, SavedPosition { next, last_timestamp: None })
        };
        for record in records.iter() {
            if batch.len() % DECODED_AT_ONCE == DECODED_AT_ONCE - 1 {
                yield_now().await;
            }
            batch.position.last_timestamp = Some(record.timestamp);
            match Received::decode(record.value.unwrap_or_default()) {
                Ok(event) => {
                    log_event(partition, &record, &event);
                    batch.events.push(event);
                }
                Err(error) => batch.dead_letters.push(dead_letter(partition, &record, error.to_string())),
            }
        }
        batch
    }

    /// A batch of Kafka's that cannot be read, now or later: one dead letter stands for it. It has no bytes of it, which are
    /// too many to be kept, or damaged; the reason says which offsets they have on the topic.
    pub(super) fn unreadable(partition: i32, unreadable: Unreadable, next: i64) -> Self {
        let (offset, error) = (unreadable.first_offset, unreadable.to_string());
        tracing::error!(partition, offset, error, "a batch cannot be read; it becomes a dead letter");
        let letter = DeadLetter { partition, offset, key: None, value: None, headers: Headers::new(), error };
        let mut batch = Self::empty(partition, SavedPosition { next, last_timestamp: None });
        batch.dead_letters.push(letter);
        batch
    }

    /// A batch that only moves the position.
    pub(super) fn empty(partition: i32, position: SavedPosition) -> Self {
        Self { partition, events: Vec::new(), dead_letters: Vec::new(), position, spans: Vec::new() }
    }

    /// How many records it has.
    pub(super) fn len(&self) -> usize {
        self.events.len() + self.dead_letters.len()
    }
}

fn dead_letter(partition: i32, record: &RecordRef<'_>, error: String) -> DeadLetter {
    let RecordAndOffset { record: kafka::Record { key, value, headers, .. }, offset } = record.to_record();
    tracing::warn!(partition, offset, error, "a record is no event; it becomes a dead letter");
    DeadLetter { partition, offset, key, value, headers, error }
}

fn log_event(partition: i32, record: &RecordRef<'_>, event: &Received) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        let trace = TraceContext::continue_from(record.header(TRACEPARENT));
        let (trace_id, patient_id, version) = (trace.trace_id(), event.patient_id, event.version);
        tracing::debug!(trace_id, %patient_id, version, kind = ?event.kind, partition, offset = record.offset, "event read");
    }
}
