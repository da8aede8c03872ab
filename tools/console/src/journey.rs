//! A trace as the journey of a patient: the steps that it consists of, those that are missing and what they wait for, and
//! the proofs that it arrived. Pure functions of a trace, its log lines and the status of the system; times are never
//! shifted.

mod body;
mod proofs;
mod steps;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value as Json;

use self::body::{EventBody, JourneyState, SpanBody, Step, StepState};
pub(crate) use self::body::{Journey, LineBody, Summary};
use crate::{
    map::SystemStatus,
    store::{Attributes, Line, SpanId, SpanKind, SpanRecord, Trace, TraceId},
    time::{iso_of_nanos, nanos_now},
};

/// A step is overdue so long after the last span of its journey ended: spans leave a service a moment after they end.
const OVERDUE_NANOS: u64 = 1_500_000_000;
/// Log lines in a journey; the first ones are kept.
const MAX_LINES: usize = 200;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    Register,
    Update,
    Delete,
    Transaction,
    Read,
    Other,
}

impl Operation {
    fn of(method: &str, route: &str) -> Self {
        match (method, route) {
            ("POST", "/patients") => Self::Register,
            ("PUT", "/patients/:id") => Self::Update,
            ("DELETE", "/patients/:id") => Self::Delete,
            ("POST", "/patients/:id/billing/transactions") => Self::Transaction,
            ("GET" | "HEAD", route) if route.starts_with("/patients") => Self::Read,
            _ => Self::Other,
        }
    }

    /// Whether it writes an event to the outbox, which has to reach analytics-service.
    fn has_event(self) -> bool {
        matches!(self, Self::Register | Self::Update | Self::Delete)
    }
}

/// A trace with the roles of its spans.
struct Analysis<'a> {
    trace: &'a Trace,
    operation: Operation,
    root: Option<&'a SpanRecord>,
    commits: Vec<&'a SpanRecord>,
    calls: Vec<&'a SpanRecord>,
    sends: Vec<&'a SpanRecord>,
    applies: Vec<&'a SpanRecord>,
    origin: u64,
    system: &'a SystemStatus,
    is_overdue: bool,
}

/// The summary of the journey of a trace.
pub(crate) fn summary(id: &TraceId, trace: &Trace, lines: &[&Line], system: &SystemStatus) -> Summary {
    let analysis = Analysis::of(trace, system);
    let steps = analysis.steps();
    analysis.summary(id, lines, &steps).0
}

/// The journey of a trace.
pub(crate) fn journey(id: &TraceId, trace: &Trace, lines: &[&Line], system: &SystemStatus) -> Journey {
    let analysis = Analysis::of(trace, system);
    let steps = analysis.steps();
    let (summary, delivered_by) = analysis.summary(id, lines, &steps);
    let proofs = analysis.proofs(summary.state, summary.version);
    let mut spans: Vec<_> = trace.spans.iter().map(|span| analysis.span(span)).collect();
    spans.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms).then_with(|| a.span.cmp(&b.span)));
    let logs = lines.iter().take(MAX_LINES).map(|line| line_body(line, Some(analysis.origin))).collect();
    Journey {
        summary,
        origin: iso_of_nanos(analysis.origin),
        delivered_by,
        steps,
        dropped: trace.dropped,
        span_list: spans,
        proofs,
        logs,
    }
}

/// A log line as the page shows it, with its time after `origin`.
pub(crate) fn line_body(line: &Line, origin: Option<u64>) -> LineBody {
    LineBody {
        id: line.id,
        time: iso_of_nanos(line.time),
        at_ms: origin.map(|origin| millis(line.time, origin)),
        service: line.service.to_string(),
        severity: line.severity.to_string(),
        message: line.message.to_string(),
        trace: line.trace.map(|id| hex(&id)),
        span: line.span.filter(|id| *id != SpanId::default()).map(|id| hex(&id)),
        attributes: json_of(&line.attributes),
    }
}

impl<'a> Analysis<'a> {
    fn of(trace: &'a Trace, system: &'a SystemStatus) -> Self {
        let mut spans: Vec<_> = trace.spans.iter().collect();
        // The result must not depend on the order in which spans arrived.
        spans.sort_by_key(|span| (span.start, span.id));
        let is_request = |span: &&&SpanRecord| span.kind == SpanKind::Server && span.text("http.route").is_some();
        let requests = || spans.iter().filter(is_request);
        let root = requests().find(|span| &*span.service == "patient-service").or(requests().next()).copied();
        let operation = match (root, &trace.write) {
            (Some(root), _) => Operation::of(
                root.text("http.request.method").unwrap_or_default(),
                root.text("http.route").unwrap_or_default(),
            ),
            (None, Some(write)) => Operation::of(write.method, write.route),
            (None, None) => Operation::Other,
        };
        let below_root = |span: &&&SpanRecord| root.is_none_or(|root| span.parent == Some(root.id));
        let statement = match operation {
            Operation::Register => "insert patient",
            Operation::Update => "update patient",
            Operation::Delete => "delete patient",
            _ => "",
        };
        let is_statement = |span: &&&SpanRecord| {
            span.kind == SpanKind::Client
                && span.text("db.system.name").is_some()
                && &*span.service != "billing-service"
        };
        let is_expected = |span: &&&SpanRecord| statement.is_empty() || &*span.name == statement;
        let commits = spans.iter().filter(is_statement).filter(below_root).filter(is_expected).copied().collect();
        // Those of the request, and those that the reconciler makes later.
        let call = match operation {
            Operation::Register => "BillingService/CreateBillingAccount",
            Operation::Delete => "BillingService/CloseBillingAccount",
            Operation::Transaction => "BillingService/RecordTransaction",
            _ => "",
        };
        let is_call = |span: &&&SpanRecord| span.kind == SpanKind::Client && !call.is_empty() && &*span.name == call;
        let calls = spans.iter().filter(is_call).copied().collect();
        let of_kind = |kind: SpanKind| spans.iter().filter(|span| span.kind == kind).copied().collect::<Vec<_>>();
        let origin = root.map(|root| root.start).or(trace.write.as_ref().map(|write| write.at));
        let last_end = spans.iter().map(|span| span.end).max().or(trace.write.as_ref().map(|write| write.at));
        Self {
            trace,
            operation,
            root,
            commits,
            calls,
            sends: of_kind(SpanKind::Producer),
            applies: of_kind(SpanKind::Consumer),
            origin: origin.unwrap_or_else(|| trace.started()),
            system,
            is_overdue: nanos_now().saturating_sub(last_end.unwrap_or_default()) > OVERDUE_NANOS,
        }
    }

    fn status(&self) -> Option<i64> {
        self.root?.number("http.response.status_code")
    }

    fn failed(&self) -> bool {
        self.status().is_some_and(|status| status >= 400)
    }

    fn ms(&self, at: u64) -> f64 {
        millis(at, self.origin)
    }

    fn summary(&self, id: &TraceId, lines: &[&Line], steps: &[Step]) -> (Summary, Option<&'static str>) {
        let is_complete = steps.iter().all(|step| step.state == StepState::Done);
        let has_spans = steps.iter().all(|step| step.wait || step.span.is_some());
        let (state, delivered_by) = if self.failed() {
            (JourneyState::Failed, None)
        } else if self.operation.has_event() && is_complete && has_spans {
            (JourneyState::Delivered, Some("steps"))
        } else if self.operation.has_event() && self.applied_by_offset() {
            (JourneyState::Delivered, Some("offset"))
        } else if self.root.is_some() && (!self.operation.has_event() || self.is_repetition(steps)) {
            (JourneyState::Done, None)
        } else if self.is_overdue {
            (JourneyState::Waiting, None)
        } else {
            (JourneyState::Running, None)
        };
        let ends = steps.iter().filter_map(|step| Some(step.start_ms? + step.ms?));
        let total_ms = ends.reduce(f64::max).map(round);
        let write = self.trace.write.as_ref();
        let method_and_route = write.map(|write| format!("{} {}", write.method, write.route));
        let patient = write.and_then(|write| write.patient).map(|id| id.to_string());
        let of_lines = || lines.iter().find_map(|line| line.text("patient_id")).map(str::to_owned);
        let version_of_lines = || lines.iter().find_map(|line| crate::store::number(&line.attributes, "version"));
        let version = write.and_then(|write| write.version).or_else(version_of_lines);
        let first = self.trace.spans.iter().min_by_key(|span| span.start);
        let summary = Summary {
            trace: hex(id),
            title: self.root.or(first).map(|span| span.name.to_string()).or(method_and_route).unwrap_or_default(),
            kind: self.operation,
            status: self.status(),
            state,
            error: self.failed() || self.trace.spans.iter().any(|span| span.error.is_some()),
            started: iso_of_nanos(self.origin),
            total_ms,
            delivered_ms: if delivered_by == Some("steps") { total_ms } else { None },
            patient: patient.or_else(of_lines),
            version: version.or((self.operation == Operation::Register).then_some(1)),
            span_count: self.trace.spans.len(),
        };
        (summary, delivered_by)
    }

    fn span(&self, span: &SpanRecord) -> SpanBody {
        let is_in = |spans: &[&SpanRecord]| spans.iter().any(|other| other.id == span.id);
        let step = if self.root.is_some_and(|root| root.id == span.id) {
            Some("request")
        } else if is_in(&self.commits) {
            Some(if self.operation == Operation::Read { "query" } else { "commit" })
        } else if is_in(&self.calls) {
            Some(if self.operation == Operation::Delete { "close" } else { "billing" })
        } else if is_in(&self.sends) {
            Some("send")
        } else if is_in(&self.applies) {
            Some("apply")
        } else {
            None
        };
        SpanBody {
            span: hex(&span.id),
            parent: span.parent.map(|id| hex(&id)),
            service: span.service.to_string(),
            name: span.name.to_string(),
            kind: span.kind,
            start_ms: self.ms(span.start),
            ms: millis(span.end, span.start),
            error: span.error.as_deref().map(str::to_owned),
            step,
            attributes: json_of(&span.attributes),
            events: span
                .events
                .iter()
                .map(|(at, name)| EventBody { name: name.to_string(), at_ms: self.ms(*at) })
                .collect(),
        }
    }
}

fn json_of(attributes: &Attributes) -> BTreeMap<String, Json> {
    let value = |value| serde_json::to_value(value).unwrap_or_default();
    attributes.iter().map(|(name, one)| (name.to_string(), value(one))).collect()
}

/// From one time to another, in milliseconds with three decimals.
fn millis(to: u64, from: u64) -> f64 {
    round((i128::from(to) - i128::from(from)) as f64 / 1e6)
}

fn round(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decodes `2 * N` lower-case hexadecimal digits.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
