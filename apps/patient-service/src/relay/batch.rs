use crate::outbox::OutboxRow;

/// Most bytes of a batch: with its overhead it has to stay below the brokers' default limit of 1 MiB.
const MAX_BYTES: usize = 900_000;
/// Most bytes that key, headers and encoding add to a value. The record itself is made when it is sent.
const RECORD_OVERHEAD: usize = 512;

/// A batch of events for one partition, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) events: Vec<OutboxRow>,
    bytes: usize,
    is_full: bool,
}

impl Batch {
    /// Adds an event unless the batch is full. An event that does not fit waits for the next step, as do all after it.
    pub(super) fn add(&mut self, event: OutboxRow) {
        let bytes = event.value.len() + RECORD_OVERHEAD;
        self.is_full |= !self.events.is_empty() && self.bytes + bytes > MAX_BYTES;
        if !self.is_full {
            self.bytes += bytes;
            self.events.push(event);
        }
    }

    /// The first half, to find the event that the broker rejects.
    pub(super) fn first_half(mut self) -> Self {
        self.events.truncate(self.events.len() / 2);
        self
    }

    /// The event at this position alone.
    pub(super) fn only(mut self, position: usize) -> Self {
        self.events.truncate(position + 1);
        self.events.drain(..position.min(self.events.len()));
        self
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use codec::event::EventKind;
    use uuid::Uuid;

    use super::*;
    use crate::relay::record::record;

    fn event(id: i64, bytes: usize) -> OutboxRow {
        OutboxRow {
            id,
            patient_id: Uuid::nil(),
            key_hash: 0,
            event_id: Uuid::nil(),
            event_type: EventKind::Created.name().to_owned(),
            value: vec![0; bytes],
            traceparent: None,
            created_at: Utc::now(),
        }
    }

    #[test]
    fn the_overhead_covers_what_a_record_has_besides_its_value() {
        let traceparent = telemetry::TraceContext::root().to_string();
        for kind in [EventKind::Created, EventKind::Updated, EventKind::Deleted] {
            let event = OutboxRow { event_type: kind.name().to_owned(), ..event(1, 0) };
            let record = record(&event, Some(&traceparent));
            let headers = record.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len));
            let length = record.key.map_or(0, |key| key.len()) + headers.sum::<usize>();
            // A length takes at most 5 bytes in a record, and the rest 22.
            let lengths = (3 + 2 * record.headers.len()) * 5 + 22;
            assert!(length > 200 && length + lengths <= RECORD_OVERHEAD, "{length} {lengths}");
        }
    }

    #[test]
    fn a_batch_ends_before_an_event_that_does_not_fit() {
        let mut batch = Batch::default();
        for (id, bytes) in [(1, MAX_BYTES * 2), (2, 1), (3, 1)] {
            batch.add(event(id, bytes));
        }
        assert_eq!(batch.events.iter().map(|event| event.id).collect::<Vec<_>>(), [1], "the first event always fits");
        let mut batch = Batch::default();
        for (id, bytes) in [(1, MAX_BYTES / 2), (2, MAX_BYTES), (3, 1)] {
            batch.add(event(id, bytes));
        }
        assert_eq!(batch.events.iter().map(|event| event.id).collect::<Vec<_>>(), [1]);
    }
}
