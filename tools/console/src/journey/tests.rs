use std::sync::Arc;

use super::{body::ProofState, *};
use crate::store::{AttributeValue, SentWrite, Store};

const MS: u64 = 1_000_000;

fn attribute(name: &str, value: AttributeValue) -> (Arc<str>, AttributeValue) {
    (name.into(), value)
}

fn text(name: &str, value: &str) -> (Arc<str>, AttributeValue) {
    attribute(name, AttributeValue::Text(value.into()))
}

fn span(id: u64, parent: u64, service: &str, kind: SpanKind, name: &str, (start, end): (u64, u64)) -> SpanRecord {
    SpanRecord {
        id: id.to_be_bytes(),
        parent: (parent != 0).then(|| parent.to_be_bytes()),
        service: service.into(),
        name: name.into(),
        kind,
        start,
        end,
        error: None,
        attributes: Vec::new(),
        events: Vec::new(),
    }
}

fn with(span: SpanRecord, attributes: &[(Arc<str>, AttributeValue)]) -> SpanRecord {
    SpanRecord { attributes: attributes.to_vec(), ..span }
}

fn sent(id: u64, times: (u64, u64), offset: Option<i64>) -> SpanRecord {
    let mut attributes = vec![text("messaging.destination.partition.id", "2")];
    attributes.extend(offset.map(|offset| attribute("messaging.kafka.offset", AttributeValue::Integer(offset))));
    let error = offset.is_none().then(|| "timeout".into());
    SpanRecord { error, ..with(span(id, 1, "patient-service", SpanKind::Producer, "send patient", times), &attributes) }
}

/// A registration as the services export it.
fn registration() -> Vec<SpanRecord> {
    let request = [
        text("http.route", "/patients"),
        text("http.request.method", "POST"),
        attribute("http.response.status_code", AttributeValue::Integer(201)),
    ];
    let at = |from: u64, to: u64| (1000 * MS + from, 1000 * MS + to);
    vec![
        with(span(1, 99, "patient-service", SpanKind::Server, "POST /patients", at(0, 6_100_000)), &request),
        with(
            span(2, 1, "patient-service", SpanKind::Client, "insert patient", at(300_000, 2_200_000)),
            &[text("db.system.name", "postgresql")],
        ),
        span(
            3,
            1,
            "patient-service",
            SpanKind::Client,
            "BillingService/CreateBillingAccount",
            at(2_300_000, 4_700_000),
        ),
        span(
            4,
            3,
            "billing-service",
            SpanKind::Server,
            "BillingService/CreateBillingAccount",
            at(2_900_000, 4_100_000),
        ),
        with(
            span(5, 4, "billing-service", SpanKind::Client, "open account", at(3_000_000, 4_000_000)),
            &[text("db.system.name", "postgresql")],
        ),
        sent(6, at(12_000_000, 16_000_000), Some(1841)),
        with(
            span(7, 6, "analytics-service", SpanKind::Consumer, "process patient", at(15_900_000, 28_000_000)),
            &[
                text("messaging.destination.partition.id", "2"),
                attribute("messaging.kafka.offset", AttributeValue::Integer(1841)),
            ],
        ),
    ]
}

const ID: TraceId = [7; 16];

fn assemble(spans: Vec<SpanRecord>, system: &SystemStatus) -> Journey {
    let store = Store::default();
    // Each in a batch of its own, as late spans come.
    spans.into_iter().for_each(|span| store.add_spans(vec![(ID, span)]));
    store.read(&ID, |trace, lines| journey(&ID, trace, lines, system)).unwrap()
}

fn step<'a>(journey: &'a Journey, id: &str) -> &'a Step {
    journey.steps.iter().find(|step| step.id == id).unwrap()
}

#[test]
fn the_wait_in_the_outbox_is_from_the_end_of_the_commit_to_the_sending() {
    let journey = assemble(registration(), &SystemStatus::default());
    let ids: Vec<_> = journey.steps.iter().map(|step| step.id).collect();
    assert_eq!(ids, ["request", "commit", "billing", "outbox", "send", "apply"]);
    let outbox = step(&journey, "outbox");
    assert_eq!((outbox.start_ms, outbox.ms, outbox.wait), (Some(2.2), Some(9.8), true));
    assert_eq!((step(&journey, "request").start_ms, step(&journey, "request").ms), (Some(0.0), Some(6.1)));
    assert_eq!((journey.summary.state, journey.summary.delivered_ms), (JourneyState::Delivered, Some(28.0)));
    assert_eq!(journey.delivered_by, Some("steps"));
}

#[test]
fn spans_in_any_order_give_one_picture() {
    let expected = serde_json::to_string(&assemble(registration(), &SystemStatus::default())).unwrap();
    let mut spans = registration();
    for turn in 0..50 {
        fastrand::seed(turn);
        fastrand::shuffle(&mut spans);
        assert_eq!(serde_json::to_string(&assemble(spans.clone(), &SystemStatus::default())).unwrap(), expected);
    }
}

#[test]
fn a_write_of_the_console_is_a_skeleton_before_any_span_has_come() {
    let store = Store::default();
    let write = SentWrite { at: nanos_now(), method: "POST", route: "/patients", patient: None, version: None };
    store.start_write(ID, write);
    let journey = store.read(&ID, |trace, lines| journey(&ID, trace, lines, &SystemStatus::default())).unwrap();
    assert_eq!(journey.steps.len(), 6);
    assert!(journey.steps.iter().all(|step| step.state == StepState::Waiting && step.waits_for.is_some()));
    assert_eq!(journey.summary.state, JourneyState::Running);
    assert_eq!(journey.summary.title, "POST /patients");
}

#[test]
fn with_the_broker_away_the_event_waits_for_it_and_tries_are_one_row() {
    let mut system = SystemStatus::default();
    system.unhealthy.insert("kafka", "patient-service: no answer".to_owned());
    let mut spans = registration();
    spans.truncate(5);
    let journey = assemble(spans.clone(), &system);
    let waits = step(&journey, "outbox").waits_for.as_ref().unwrap();
    assert_eq!(waits.part, "kafka");
    assert!(waits.text.contains("Kafka, which does not answer"), "{}", waits.text);
    assert_eq!((step(&journey, "outbox").start_ms, step(&journey, "outbox").ms), (Some(2.2), None));
    assert_eq!(journey.summary.state, JourneyState::Waiting);

    let failed = |id, at: u64| sent(id, ((1000 + at) * MS, (1000 + at) * MS + 5 * MS), None);
    spans.extend([failed(10, 12), failed(11, 112)]);
    let journey = assemble(spans.clone(), &system);
    assert_eq!((step(&journey, "send").state, step(&journey, "send").tries.len()), (StepState::Waiting, 2));

    spans.push(sent(12, (1500 * MS, 1504 * MS), Some(7)));
    let journey = assemble(spans, &SystemStatus::default());
    let send = step(&journey, "send");
    assert_eq!((send.state, send.tries.len(), send.ms), (StepState::Done, 3, Some(4.0)));
    assert_eq!(journey.steps.iter().filter(|step| step.id == "send").count(), 1);
    assert_eq!(journey.proofs[0].offset, Some(7));
}

#[test]
fn without_the_consumers_span_the_applied_offset_proves_it() {
    let mut spans = registration();
    spans.truncate(6);
    let behind = SystemStatus { applied: BTreeMap::from([(2, 1840)]), ..SystemStatus::default() };
    let journey = assemble(spans.clone(), &behind);
    assert_eq!(journey.summary.state, JourneyState::Waiting);
    assert_eq!(journey.proofs[1].state, ProofState::Pending);
    let passed = SystemStatus { applied: BTreeMap::from([(2, 1841)]), ..SystemStatus::default() };
    let journey = assemble(spans, &passed);
    assert_eq!((journey.summary.state, journey.delivered_by), (JourneyState::Delivered, Some("offset")));
    assert_eq!(step(&journey, "apply").state, StepState::Done);
    let proofs: Vec<_> = journey.proofs.iter().map(|proof| proof.state).collect();
    assert_eq!(proofs, [ProofState::Ok, ProofState::Ok, ProofState::Pending]);
}

#[test]
fn a_request_that_failed_expects_nothing_more() {
    let mut spans = registration();
    spans.truncate(1);
    spans[0].attributes[2].1 = AttributeValue::Integer(409);
    let journey = assemble(spans, &SystemStatus::default());
    assert_eq!(journey.summary.state, JourneyState::Failed);
    assert!(journey.summary.error && journey.proofs.is_empty());
    assert_eq!(journey.steps.len(), 1);
}

#[test]
fn ids_are_read_as_they_are_written() {
    assert_eq!(from_hex::<16>(&hex(&ID)), Some(ID));
    for wrong in ["", "07", "0707070707070707070707070707070G", "+7070707070707070707070707070707"] {
        assert_eq!(from_hex::<16>(wrong), None, "{wrong}");
    }
}
