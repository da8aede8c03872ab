use super::record::record;
use crate::outbox::OutboxRow;

/// Bytes of one batch at most: with its frame it has to stay below the 1 MiB that brokers take by default.
const BATCH_BYTES: usize = 900_000;
/// What a record's frame adds to its key, value and headers, at most.
const FRAME_BYTES: usize = 64;

/// Events for one partition, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) events: Vec<OutboxRow>,
    bytes: usize,
    full: bool,
}

impl Batch {
    /// Adds an event unless the batch is full. An event that finds no room waits for the next step, and so does
    /// everything after it.
    pub(super) fn add(&mut self, event: OutboxRow) {
        let bytes = record(&event, event.traceparent.as_deref()).approximate_size() + FRAME_BYTES;
        self.full |= !self.events.is_empty() && self.bytes + bytes > BATCH_BYTES;
        if !self.full {
            self.bytes += bytes;
            self.events.push(event);
        }
    }

    /// The events that come first, to find the one that is to blame.
    pub(super) fn first_half(mut self) -> Self {
        self.events.truncate(self.events.len() / 2);
        self
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use codec::event::Kind;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_batch_ends_before_what_does_not_fit_and_takes_nothing_after_it() {
        let event = |id, bytes| OutboxRow {
            id,
            patient_id: Uuid::nil(),
            key_hash: 0,
            event_id: Uuid::nil(),
            event_type: Kind::Created.name().to_owned(),
            value: vec![0; bytes],
            traceparent: None,
            created_at: Utc::now(),
        };
        let mut batch = Batch::default();
        for (id, bytes) in [(1, BATCH_BYTES * 2), (2, 1), (3, 1)] {
            batch.add(event(id, bytes));
        }
        assert_eq!(batch.events.iter().map(|event| event.id).collect::<Vec<_>>(), [1], "one always fits");
        let mut batch = Batch::default();
        for (id, bytes) in [(1, BATCH_BYTES / 2), (2, BATCH_BYTES), (3, 1)] {
            batch.add(event(id, bytes));
        }
        assert_eq!(batch.events.iter().map(|event| event.id).collect::<Vec<_>>(), [1]);
    }
}
