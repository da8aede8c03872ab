//! The steps of a journey: those of which there are spans, and those that are missing, with what each waits for.

use super::{
    Analysis, Operation,
    body::{Step, StepState, Try, WaitsFor},
    hex, millis,
};
use crate::store::SpanRecord;

impl Analysis<'_> {
    /// The steps in their order.
    pub(super) fn steps(&self) -> Vec<Step> {
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
        // A read that was answered without a statement has no query.
        if self.operation == Operation::Read && self.root.is_some() {
            steps.retain(|step| step.state != StepState::Waiting);
        }
        if self.operation.has_event() && self.is_repetition(&steps) {
            // The patient is that of an earlier request, and so is the event.
            for (id, label) in [("outbox", "outbox wait"), ("send", "send to Kafka"), ("apply", "apply")] {
                let step = self.row(id, label, None, &[], "kafka");
                steps.push(Step { state: StepState::Skipped, waits_for: None, wait: id == "outbox", ..step });
            }
        } else if self.operation.has_event() {
            let mut send = self.row("send", "send to Kafka", None, &self.sends, "kafka");
            let mut apply = self.row("apply", "apply", None, &self.applies, "analytics-service");
            // The applied offset proves that the event arrived, also when a span is lost.
            if apply.state != StepState::Done && self.applied_by_offset() {
                apply.state = StepState::Done;
                apply.waits_for = None;
            }
            if send.state == StepState::Waiting && apply.state == StepState::Done {
                send.state = StepState::Done;
                send.waits_for = None;
            }
            // The relay sends again what the broker has not acknowledged.
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
    pub(super) fn is_repetition(&self, steps: &[Step]) -> bool {
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

    /// A step from the attempts at it: the last successful one, else the last one.
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

    /// What a step waits for that `part` has to do: the last part on the path to it that is unhealthy, else `part`.
    fn waits_for(&self, part: &'static str) -> WaitsFor {
        let is_unhealthy = |part: &str| self.system.unhealthy.contains_key(part);
        let path: &[&'static str] = match part {
            "kafka" => &["patient-service", "kafka"],
            "analytics-service" => &["kafka", "analytics-service"],
            _ => &[],
        };
        let cause = path.iter().rev().find(|part| is_unhealthy(part)).copied().unwrap_or(part);
        let text = match cause {
            cause if is_unhealthy(cause) => match cause {
                "kafka" => "waits for Kafka, which does not answer; the event is safe in the outbox".to_owned(),
                "patient-service" => "waits for patient-service, whose relay sends the event".to_owned(),
                cause => format!("waits for {cause}, which is not healthy"),
            },
            "patient-service" => "waits for the response of patient-service".to_owned(),
            "patient-db" => "waits for PostgreSQL".to_owned(),
            "kafka" => "waits for the relay, which sends what is in the outbox".to_owned(),
            "analytics-service" => match self.system.lag {
                Some(lag) if lag > 0 => format!("waits for analytics-service, which is {lag} records behind"),
                _ => "waits for analytics-service".to_owned(),
            },
            cause => format!("waits for {cause}"),
        };
        WaitsFor { part: cause, text }
    }
}
