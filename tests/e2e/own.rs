//! The tests of any running system, on one of their own, with each broker.

use std::{fs, path::PathBuf};

use opentelemetry_proto::tonic::logs::v1::LogRecord;
use testbed::{
    broker::Kind,
    service::Service,
    system::{Ground, System},
};

use crate::{
    collector::{Collector, string},
    journey,
    outside::Outside,
    privacy,
    support::until,
    traces,
};

testbed::on_each_broker!(
    a_patient_travels_all_the_way,
    many_patients_are_stored_billed_and_counted_once,
    one_trace_from_the_request_to_analytics,
    a_marked_patient_leaves_no_mark
);

/// A system on the shared servers.
pub(crate) async fn system(kind: Kind, extra: &[(&str, &str)]) -> System {
    System::start(Ground::shared(kind).await, 1, extra).await.unwrap_or_else(|error| panic!("{error}"))
}

fn a_patient_travels_all_the_way(kind: Kind) {
    runtime::block_on(2, async { journey::of_one_patient(&outside(&system(kind, &[]).await)).await });
}

fn many_patients_are_stored_billed_and_counted_once(kind: Kind) {
    runtime::block_on(2, async { journey::of_many_patients(&outside(&system(kind, &[]).await)).await });
}

fn one_trace_from_the_request_to_analytics(kind: Kind) {
    let lines = [
        ("patient-service", "patient registered"),
        ("billing-service", "account opened"),
        ("analytics-service", "event read"),
    ];
    runtime::block_on(2, async {
        let system = system(kind, &[("LOG_LEVEL", "debug")]).await;
        traces::of_a_registration(&outside(&system), &lines).await;
    });
}

fn a_marked_patient_leaves_no_mark(kind: Kind) {
    runtime::block_on(2, async {
        let collector = Collector::start(0);
        let endpoint = collector.endpoint();
        let settings = [
            ("LOG_LEVEL", "trace"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
        ];
        let system = system(kind, &settings).await;
        privacy::of_a_marked_patient(&outside(&system)).await;
        // Each request has been exported, the last of them with all that it set off.
        for name in ["DELETE /patients/:id", "BillingService/RecordTransaction", "close account", "reconcile billing"] {
            until(name, async || collector.spans().iter().any(|span| span.message.name == name)).await;
        }
        let last = |(_, line): &(_, LogRecord)| string(&line.body) == Some("account closed");
        until("the last line", async || collector.lines().iter().any(last)).await;
        until("the metrics", async || !collector.metrics("billing-service").is_empty()).await;
        let exported = collector.text();
        assert!(exported.contains("\"search patients in order\"") && exported.contains("patients_email_key"));
        for mark in privacy::MARKS {
            assert!(!exported.contains(mark), "{mark} in what was exported");
        }
    });
}

/// A system of a test's own, as its users see it.
fn outside(system: &System) -> Outside {
    let files: Vec<(&str, PathBuf)> = system
        .patients
        .iter()
        .chain([&system.billing, &system.analytics])
        .map(|service| (service.launch().name, service.launch().log()))
        .collect();
    Outside {
        patients: system.patient_client(),
        replicas: system.patients.iter().map(Service::client).collect(),
        billing: vec![system.billing.client()],
        analytics: vec![system.analytics.client()],
        log: Box::new(move |part| {
            let logs = files.iter().filter(|(name, _)| *name == part);
            logs.map(|(_, file)| fs::read_to_string(file).unwrap()).collect()
        }),
    }
}
