use chrono::Utc;
use codec::{
    event::Kind,
    headers::{self, Headers},
};
use kafka::Record;

use crate::outbox::Pending;

/// Bytes of one batch at most: with its frame it has to stay below the 1 MiB that brokers take by default.
const BATCH_BYTES: usize = 900_000;
/// What a record's frame adds to its key, value and headers, at most.
const FRAME_BYTES: usize = 64;

/// Events for one partition, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) events: Vec<Pending>,
    bytes: usize,
    full: bool,
}

impl Batch {
    /// Adds an event unless the batch is full. An event that finds no room waits for the next step, and so does
    /// everything after it.
    pub(super) fn add(&mut self, event: Pending) {
        let bytes = record(&event).approximate_size() + FRAME_BYTES;
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

    /// What goes to the broker.
    pub(super) fn records(&self) -> Vec<Record> {
        self.events.iter().map(record).collect()
    }
}

fn record(event: &Pending) -> Record {
    Record {
        key: Some(event.patient_id.to_string().into_bytes()),
        value: Some(event.value.clone()),
        headers: headers_of(event),
        timestamp: Utc::now(),
    }
}

fn headers_of(event: &Pending) -> Headers {
    match event.event_type.parse::<Kind>() {
        Ok(kind) => headers::of_event(event.event_id, kind, event.created_at, event.traceparent.as_deref()),
        // A later version of this service wrote a kind that we do not know. Its value says all.
        Err(_) => Headers::new(),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_batch_ends_before_what_does_not_fit_and_takes_nothing_after_it() {
        let event = |id, bytes| Pending {
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
