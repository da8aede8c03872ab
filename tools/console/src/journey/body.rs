//! A journey as JSON for the page; [API.md](../../API.md) describes it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value as Json;

use super::Operation;
use crate::store::SpanKind;

/// How far a journey has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JourneyState {
    /// Steps are missing, and none is overdue.
    Running,
    /// A step is overdue.
    Waiting,
    /// Every step is there, or analytics has applied the event.
    Delivered,
    /// It leaves no event.
    Done,
    /// The request failed.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StepState {
    Done,
    Waiting,
    Failed,
    Skipped,
}

/// What a missing step waits for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct WaitsFor {
    pub(super) part: &'static str,
    pub(super) text: String,
}

/// One attempt at a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Try {
    pub(super) start_ms: f64,
    pub(super) ms: f64,
    pub(super) error: Option<String>,
    pub(super) span: String,
}

/// A step of a journey: a row of the picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Step {
    pub(crate) id: &'static str,
    pub(super) label: &'static str,
    pub(super) parent: Option<&'static str>,
    pub(crate) state: StepState,
    pub(crate) start_ms: Option<f64>,
    pub(crate) ms: Option<f64>,
    pub(super) service: Option<String>,
    pub(super) span: Option<String>,
    /// Whether it is time that passes without work, such as that of an event in the outbox.
    pub(super) wait: bool,
    pub(crate) waits_for: Option<WaitsFor>,
    /// Where there was more than one attempt, each of them.
    pub(crate) tries: Vec<Try>,
    pub(super) error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct SpanBody {
    pub(super) span: String,
    pub(super) parent: Option<String>,
    pub(super) service: String,
    pub(super) name: String,
    pub(super) kind: SpanKind,
    pub(super) start_ms: f64,
    pub(super) ms: f64,
    pub(super) error: Option<String>,
    pub(super) step: Option<&'static str>,
    pub(super) attributes: BTreeMap<String, Json>,
    pub(super) events: Vec<EventBody>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct EventBody {
    pub(super) name: String,
    pub(super) at_ms: f64,
}

/// Evidence that the event arrived: from the broker, from analytics-service or from the patient itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Proof {
    pub(crate) id: &'static str,
    pub(crate) state: ProofState,
    pub(super) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) partition: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) applied: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProofState {
    Pending,
    Ok,
    Failed,
}

/// A log line as the page shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LineBody {
    pub(super) id: u64,
    pub(super) time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) at_ms: Option<f64>,
    pub(super) service: String,
    pub(super) severity: String,
    pub(super) message: String,
    pub(super) trace: Option<String>,
    pub(super) span: Option<String>,
    pub(super) attributes: BTreeMap<String, Json>,
}

/// A journey in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) trace: String,
    pub(super) title: String,
    pub(crate) kind: Operation,
    pub(super) status: Option<i64>,
    pub(crate) state: JourneyState,
    pub(crate) error: bool,
    pub(crate) started: String,
    pub(super) total_ms: Option<f64>,
    pub(crate) delivered_ms: Option<f64>,
    pub(crate) patient: Option<String>,
    pub(crate) version: Option<i64>,
    pub(super) span_count: usize,
}

/// A journey with all that is known of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Journey {
    #[serde(flatten)]
    pub(crate) summary: Summary,
    pub(super) origin: String,
    pub(super) delivered_by: Option<&'static str>,
    pub(crate) steps: Vec<Step>,
    /// Spans beyond the limit for one trace.
    pub(super) dropped: u64,
    #[serde(rename = "spans")]
    pub(super) span_list: Vec<SpanBody>,
    pub(crate) proofs: Vec<Proof>,
    pub(super) logs: Vec<LineBody>,
}

impl Summary {
    /// Whether the span of a request is there.
    pub(crate) fn is_answered(&self) -> bool {
        self.status.is_some()
    }
}

impl Journey {
    /// The patient whose record would prove that the journey arrived; none if that is proved, or is not the time yet.
    pub(crate) fn patient_to_read_back(&self) -> Option<&str> {
        let is_pending = self.proofs.iter().any(|proof| proof.id == "read_back" && proof.state == ProofState::Pending);
        self.summary.patient.as_deref().filter(|_| is_pending && self.summary.state == JourneyState::Delivered)
    }
}
