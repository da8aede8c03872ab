//! What proves that an event arrived: the broker's acknowledgement, the offset that analytics-service has applied, and the
//! patient as patient-service has it now.

use super::{
    Analysis, Operation,
    body::{JourneyState, Proof, ProofState},
};
use crate::store::SpanRecord;

impl Analysis<'_> {
    /// The record that the broker has acknowledged, or that was read from it: partition and offset.
    pub(super) fn record(&self) -> Option<(i64, i64)> {
        let place = |span: &&SpanRecord| {
            Some((span.number("messaging.destination.partition.id")?, span.number("messaging.kafka.offset")?))
        };
        let sent = self.sends.iter().rev().filter(|span| span.error.is_none()).find_map(place);
        sent.or_else(|| self.applies.iter().find_map(place))
    }

    /// The offset that analytics has applied in the record's partition.
    fn applied(&self) -> Option<i64> {
        let (partition, _) = self.record()?;
        self.system.applied.get(&partition).copied()
    }

    pub(super) fn applied_by_offset(&self) -> bool {
        self.applied().zip(self.record()).is_some_and(|(applied, (_, offset))| applied >= offset)
    }

    pub(super) fn proofs(&self, state: JourneyState, version: Option<i64>) -> Vec<Proof> {
        if !self.operation.has_event() || self.failed() || state == JourneyState::Done {
            return Vec::new();
        }
        let proof =
            |id, state, text| Proof { id, state, text, partition: None, offset: None, applied: None, version: None };
        let record = self.record();
        let broker = match record {
            Some((partition, offset)) => Proof {
                partition: Some(partition),
                offset: Some(offset),
                ..proof(
                    "broker",
                    ProofState::Ok,
                    format!("the broker acknowledged partition {partition}, offset {offset}"),
                )
            },
            None => proof("broker", ProofState::Pending, "the broker has acknowledged nothing yet".to_owned()),
        };
        let applied = self.applied();
        let analytics = match (record, applied) {
            (Some((_, offset)), Some(applied)) if applied >= offset => Proof {
                applied: Some(applied),
                ..proof("analytics", ProofState::Ok, format!("analytics has applied offset {applied} of its partition"))
            },
            _ => Proof {
                applied,
                ..proof("analytics", ProofState::Pending, "analytics has not applied it yet".to_owned())
            },
        };
        let deleted = self.operation == Operation::Delete;
        let read_back = match (self.trace.read_back, version) {
            (None, _) => proof("read_back", ProofState::Pending, "the record has not been read back yet".to_owned()),
            (Some(0), _) if deleted => proof("read_back", ProofState::Ok, "the record is gone".to_owned()),
            (Some(0), _) => proof("read_back", ProofState::Failed, "the record is gone".to_owned()),
            (Some(read), _) if deleted => Proof {
                version: Some(read),
                ..proof("read_back", ProofState::Failed, format!("the record is still there, version {read}"))
            },
            (Some(read), version) => {
                let state =
                    if version.is_none_or(|version| read >= version) { ProofState::Ok } else { ProofState::Failed };
                Proof {
                    version: Some(read),
                    ..proof("read_back", state, format!("the record was read back: version {read}"))
                }
            }
        };
        vec![broker, analytics, read_back]
    }
}
