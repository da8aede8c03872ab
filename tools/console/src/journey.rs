//! A trace as the journey of a patient: the steps that it consists of, those that are missing and what they wait for, and
//! the proofs that it arrived. Everything here is a function of what is known; times are never shifted.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value as Json;

use crate::{
    map::Facts,
    store::{Attributes, Kind, Line, SpanId, SpanRecord, Trace, TraceId},
    time::{iso_of_nanos, nanos_now},
};

/// A step that is not there so long after the last sign of its journey is overdue: spans leave a service a moment after
/// they end.
const OVERDUE_NANOS: u64 = 1_500_000_000;
/// Log lines of a journey at most, the first ones.
const MAX_LINES: usize = 200;

/// What a request asks for.
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

    /// Whether it leaves an event that has to arrive.
    fn is_delivered(self) -> bool {
        matches!(self, Self::Register | Self::Update | Self::Delete)
    }
}

/// How a journey is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JourneyState {
    /// Steps are missing, which may come any moment.
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
    part: &'static str,
    text: String,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Try {
    start_ms: f64,
    ms: f64,
    error: Option<String>,
    span: String,
}

/// A row of the picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Step {
    pub(crate) id: &'static str,
    label: &'static str,
    parent: Option<&'static str>,
    pub(crate) state: StepState,
    pub(crate) start_ms: Option<f64>,
    pub(crate) ms: Option<f64>,
    service: Option<String>,
    span: Option<String>,
    /// Nobody works meanwhile.
    wait: bool,
    pub(crate) waits_for: Option<WaitsFor>,
    /// Where there was more than one attempt, each of them.
    pub(crate) tries: Vec<Try>,
    error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct SpanBody {
    span: String,
    parent: Option<String>,
    service: String,
    name: String,
    kind: Kind,
    start_ms: f64,
    ms: f64,
    error: Option<String>,
    step: Option<&'static str>,
    attributes: BTreeMap<String, Json>,
    events: Vec<EventBody>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct EventBody {
    name: String,
    at_ms: f64,
}

/// Why it is certain that a journey went as far as it says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Proof {
    pub(crate) id: &'static str,
    pub(crate) state: ProofState,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
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
    id: u64,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_ms: Option<f64>,
    service: String,
    severity: String,
    message: String,
    trace: Option<String>,
    span: Option<String>,
    attributes: BTreeMap<String, Json>,
}

/// What a list shows of a journey.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) trace: String,
    title: String,
    pub(crate) kind: Operation,
    status: Option<i64>,
    pub(crate) state: JourneyState,
    pub(crate) error: bool,
    pub(crate) started: String,
    total_ms: Option<f64>,
    pub(crate) delivered_ms: Option<f64>,
    pub(crate) patient: Option<String>,
    pub(crate) version: Option<i64>,
    span_count: usize,
}

/// All of a journey.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Journey {
    #[serde(flatten)]
    pub(crate) summary: Summary,
    origin: String,
    delivered_by: Option<&'static str>,
    pub(crate) steps: Vec<Step>,
    /// Spans that there was no room for.
    dropped: u64,
    #[serde(rename = "spans")]
    span_list: Vec<SpanBody>,
    pub(crate) proofs: Vec<Proof>,
    logs: Vec<LineBody>,
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

/// A trace with what its parts are found to be.
struct Parts<'a> {
    trace: &'a Trace,
    operation: Operation,
    root: Option<&'a SpanRecord>,
    commits: Vec<&'a SpanRecord>,
    calls: Vec<&'a SpanRecord>,
    sends: Vec<&'a SpanRecord>,
    applies: Vec<&'a SpanRecord>,
    origin: u64,
    facts: &'a Facts,
    is_overdue: bool,
}

/// The summary of a trace, and whether it is one of a request.
pub(crate) fn summary(id: &TraceId, trace: &Trace, lines: &[&Line], facts: &Facts) -> Summary {
    let parts = Parts::of(trace, facts);
    let steps = parts.steps();
    parts.summary(id, lines, &steps).0
}

/// The journey of a trace.
pub(crate) fn journey(id: &TraceId, trace: &Trace, lines: &[&Line], facts: &Facts) -> Journey {
    let parts = Parts::of(trace, facts);
    let steps = parts.steps();
    let (summary, delivered_by) = parts.summary(id, lines, &steps);
    let proofs = parts.proofs(summary.state, summary.version);
    let mut spans: Vec<_> = trace.spans.iter().map(|span| parts.span(span)).collect();
    spans.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms).then_with(|| a.span.cmp(&b.span)));
    let logs = lines.iter().take(MAX_LINES).map(|line| line_body(line, Some(parts.origin))).collect();
    Journey {
        summary,
        origin: iso_of_nanos(parts.origin),
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

impl<'a> Parts<'a> {
    fn of(trace: &'a Trace, facts: &'a Facts) -> Self {
        let mut spans: Vec<_> = trace.spans.iter().collect();
        // Whatever the order in which they came, the picture is one.
        spans.sort_by_key(|span| (span.start, span.id));
        let is_request = |span: &&&SpanRecord| span.kind == Kind::Server && span.text("http.route").is_some();
        let requests = || spans.iter().filter(is_request);
        let root = requests().find(|span| &*span.service == "patient-service").or(requests().next()).copied();
        let operation = match (root, &trace.begun) {
            (Some(root), _) => Operation::of(
                root.text("http.request.method").unwrap_or_default(),
                root.text("http.route").unwrap_or_default(),
            ),
            (None, Some(begun)) => Operation::of(begun.method, begun.route),
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
            span.kind == Kind::Client && span.text("db.system.name").is_some() && &*span.service != "billing-service"
        };
        let is_meant = |span: &&&SpanRecord| statement.is_empty() || &*span.name == statement;
        let commits = spans.iter().filter(is_statement).filter(below_root).filter(is_meant).copied().collect();
        // Those of the request, and those that the reconciler makes later.
        let call = match operation {
            Operation::Register => "BillingService/CreateBillingAccount",
            Operation::Delete => "BillingService/CloseBillingAccount",
            Operation::Transaction => "BillingService/RecordTransaction",
            _ => "",
        };
        let is_call = |span: &&&SpanRecord| span.kind == Kind::Client && !call.is_empty() && &*span.name == call;
        let calls = spans.iter().filter(is_call).copied().collect();
        let of_kind = |kind: Kind| spans.iter().filter(|span| span.kind == kind).copied().collect::<Vec<_>>();
        let origin = root.map(|root| root.start).or(trace.begun.as_ref().map(|begun| begun.at));
        let last_sign = spans.iter().map(|span| span.end).max().or(trace.begun.as_ref().map(|begun| begun.at));
        Self {
            trace,
            operation,
            root,
            commits,
            calls,
            sends: of_kind(Kind::Producer),
            applies: of_kind(Kind::Consumer),
            origin: origin.unwrap_or_else(|| trace.started()),
            facts,
            is_overdue: nanos_now().saturating_sub(last_sign.unwrap_or_default()) > OVERDUE_NANOS,
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

    /// The steps in their order.
    fn steps(&self) -> Vec<Step> {
        let request = self.request();
        let commit = || self.row("commit", "commit", Some("request"), &self.commits, "patient-db");
        let mut steps = match self.operation {
            Operation::Register => {
                vec![
                    request,
                    commit(),
                    self.row("billing", "billing gRPC", Some("request"), &self.calls, "billing-service"),
                ]
            }
            Operation::Update => vec![request, commit()],
            Operation::Delete => {
                vec![request, commit(), self.row("close", "close the account", None, &self.calls, "billing-service")]
            }
            Operation::Transaction => {
                vec![request, self.row("billing", "billing gRPC", Some("request"), &self.calls, "billing-service")]
            }
            Operation::Read => vec![request, self.row("query", "query", Some("request"), &self.commits, "patient-db")],
            Operation::Other => vec![request],
        };
        if self.failed() {
            // Nothing is expected of a request that failed.
            steps.retain(|step| step.state != StepState::Waiting);
            return steps;
        }
        // Answers from memory, and lists of nothing, ask no database.
        if self.operation == Operation::Read && self.root.is_some() {
            steps.retain(|step| step.state != StepState::Waiting);
        }
        if self.operation.is_delivered() && self.is_repetition(&steps) {
            // The patient is that of an earlier request, and so is the event.
            for (id, label) in [("outbox", "outbox wait"), ("send", "send to Kafka"), ("apply", "apply")] {
                let step = self.row(id, label, None, &[], "kafka");
                steps.push(Step { state: StepState::Skipped, waits_for: None, wait: id == "outbox", ..step });
            }
        } else if self.operation.is_delivered() {
            let mut send = self.row("send", "send to Kafka", None, &self.sends, "kafka");
            let mut apply = self.row("apply", "apply", None, &self.applies, "analytics-service");
            // Whoever has applied the event has got it; spans may be lost.
            if apply.state != StepState::Done && self.applied_by_offset() {
                apply.state = StepState::Done;
                apply.waits_for = None;
            }
            if send.state == StepState::Waiting && apply.state == StepState::Done {
                send.state = StepState::Done;
                send.waits_for = None;
            }
            // A broker that does not take it is tried again.
            if send.state == StepState::Failed {
                send.state = StepState::Waiting;
                send.waits_for = Some(self.waits_for("kafka"));
            }
            steps.push(self.outbox(&send));
            steps.extend([send, apply]);
        }
        steps
    }

    /// Whether the request was answered although its commit failed: it repeats one with the same `Idempotency-Key`.
    fn is_repetition(&self, steps: &[Step]) -> bool {
        let has_failed = |step: &Step| step.id == "commit" && step.state == StepState::Failed;
        self.root.is_some() && steps.iter().any(has_failed) && self.sends.is_empty()
    }

    fn request(&self) -> Step {
        let spans: Vec<_> = self.root.into_iter().collect();
        let mut step = self.row("request", "HTTP request", None, &spans, "patient-service");
        if self.failed() {
            step.state = StepState::Failed;
            step.error = self.status().map(|status| status.to_string());
        }
        step
    }

    /// The wait between the commit and the first attempt at sending the event.
    fn outbox(&self, send: &Step) -> Step {
        let committed = self.commits.iter().rev().find(|span| span.error.is_none()).map(|span| span.end);
        let sent = self.sends.first().map(|span| span.start);
        let state = match (sent, send.state) {
            (Some(_), _) | (None, StepState::Done) => StepState::Done,
            _ => StepState::Waiting,
        };
        Step {
            id: "outbox",
            label: "outbox wait",
            parent: None,
            state,
            start_ms: committed.map(|at| self.ms(at)),
            ms: committed.zip(sent).map(|(from, to)| millis(to, from)),
            service: None,
            span: None,
            wait: true,
            waits_for: (state == StepState::Waiting).then(|| self.waits_for("kafka")),
            tries: Vec::new(),
            error: None,
        }
    }

    /// A row of the attempts at a step: the last one that went well, else the last one.
    fn row(
        &self,
        id: &'static str,
        label: &'static str,
        parent: Option<&'static str>,
        attempts: &[&SpanRecord],
        part: &'static str,
    ) -> Step {
        let chosen = attempts.iter().rev().find(|span| span.error.is_none()).or(attempts.last()).copied();
        let tries = attempts.iter().map(|span| Try {
            start_ms: self.ms(span.start),
            ms: millis(span.end, span.start),
            error: span.error.as_deref().map(str::to_owned),
            span: hex(&span.id),
        });
        let state = match chosen {
            None => StepState::Waiting,
            Some(span) if span.error.is_some() && id != "request" => StepState::Failed,
            Some(_) => StepState::Done,
        };
        Step {
            id,
            label,
            parent,
            state,
            start_ms: chosen.map(|span| self.ms(span.start)),
            ms: chosen.map(|span| millis(span.end, span.start)),
            service: chosen.map(|span| span.service.to_string()),
            span: chosen.map(|span| hex(&span.id)),
            wait: false,
            waits_for: (state == StepState::Waiting).then(|| self.waits_for(part)),
            tries: if attempts.len() > 1 { tries.collect() } else { Vec::new() },
            error: chosen.and_then(|span| span.error.as_deref()).map(str::to_owned),
        }
    }

    /// What a step waits for that a part has to do: the first part on the way that does not work, else that one.
    fn waits_for(&self, part: &'static str) -> WaitsFor {
        let troubled = |part: &str| self.facts.troubles.contains_key(part);
        let way: &[&'static str] = match part {
            "kafka" => &["patient-service", "kafka"],
            "analytics-service" => &["kafka", "analytics-service"],
            _ => &[],
        };
        let cause = way.iter().rev().find(|one| troubled(one)).copied().unwrap_or(part);
        let text = match cause {
            cause if troubled(cause) => match cause {
                "kafka" => "waits for Kafka, which does not answer; the event is safe in the outbox".to_owned(),
                "patient-service" => "waits for patient-service, whose relay sends the event".to_owned(),
                cause => format!("waits for {cause}, which does not work as it should"),
            },
            "patient-service" => "waits for the answer of patient-service".to_owned(),
            "patient-db" => "waits for PostgreSQL".to_owned(),
            "kafka" => "waits for the relay, which sends what is in the outbox".to_owned(),
            "analytics-service" => match self.facts.lag {
                Some(lag) if lag > 0 => format!("waits for analytics-service, which is {lag} records behind"),
                _ => "waits for analytics-service".to_owned(),
            },
            cause => format!("waits for {cause}"),
        };
        WaitsFor { part: cause, text }
    }

    /// The record that the broker has acknowledged, or that was read from it: partition and offset.
    fn record(&self) -> Option<(i64, i64)> {
        let place = |span: &&SpanRecord| {
            Some((span.number("messaging.destination.partition.id")?, span.number("messaging.kafka.offset")?))
        };
        let sent = self.sends.iter().rev().filter(|span| span.error.is_none()).find_map(place);
        sent.or_else(|| self.applies.iter().find_map(place))
    }

    /// The offset that analytics has applied in the record's partition.
    fn applied(&self) -> Option<i64> {
        let (partition, _) = self.record()?;
        self.facts.applied.get(&partition).copied()
    }

    fn applied_by_offset(&self) -> bool {
        self.applied().zip(self.record()).is_some_and(|(applied, (_, offset))| applied >= offset)
    }

    fn summary(&self, id: &TraceId, lines: &[&Line], steps: &[Step]) -> (Summary, Option<&'static str>) {
        let is_complete = steps.iter().all(|step| step.state == StepState::Done);
        let has_spans = steps.iter().all(|step| step.wait || step.span.is_some());
        let (state, delivered_by) = if self.failed() {
            (JourneyState::Failed, None)
        } else if self.operation.is_delivered() && is_complete && has_spans {
            (JourneyState::Delivered, Some("steps"))
        } else if self.operation.is_delivered() && self.applied_by_offset() {
            (JourneyState::Delivered, Some("offset"))
        } else if self.root.is_some() && (!self.operation.is_delivered() || self.is_repetition(steps)) {
            (JourneyState::Done, None)
        } else if self.is_overdue {
            (JourneyState::Waiting, None)
        } else {
            (JourneyState::Running, None)
        };
        let ends = steps.iter().filter_map(|step| Some(step.start_ms? + step.ms?));
        let total_ms = ends.reduce(f64::max).map(round);
        let begun = self.trace.begun.as_ref();
        let method_and_route = begun.map(|begun| format!("{} {}", begun.method, begun.route));
        let patient = begun.and_then(|begun| begun.patient).map(|id| id.to_string());
        let of_lines = || lines.iter().find_map(|line| line.text("patient_id")).map(str::to_owned);
        let version_of_lines = || lines.iter().find_map(|line| crate::store::number(&line.attributes, "version"));
        let version = begun.and_then(|begun| begun.version).or_else(version_of_lines);
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

    fn proofs(&self, state: JourneyState, version: Option<i64>) -> Vec<Proof> {
        if !self.operation.is_delivered() || self.failed() || state == JourneyState::Done {
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

/// The bytes of so many hexadecimal digits.
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
