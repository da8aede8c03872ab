//! The tests that also run on a system of `just up`, here with each broker on a system that the test starts.

use std::{fs, path::PathBuf};

use opentelemetry_proto::tonic::logs::v1::LogRecord;
use testbed::{
    broker::Kind,
    service::Service,
    system::{BackingServices, System},
    until,
};

use crate::{
    collector::{Collector, string},
    journey, privacy,
    running_system::RunningSystem,
    traces,
};

testbed::on_each_broker!(
    a_patient_goes_through_the_whole_system,
    many_patients_are_stored_billed_and_counted_once,
    one_trace_from_the_request_to_analytics,
    no_personal_data_are_in_logs_metrics_or_exports
);

/// A system on the shared servers.
pub(crate) async fn system(kind: Kind, extra: &[(&str, &str)]) -> System {
    System::start(BackingServices::shared(kind).await, 1, extra).await.unwrap_or_else(|error| panic!("{error}"))
}

fn a_patient_goes_through_the_whole_system(kind: Kind) {
    runtime::block_on(2, async { journey::of_one_patient(&running_system(&system(kind, &[]).await)).await });
}

fn many_patients_are_stored_billed_and_counted_once(kind: Kind) {
    runtime::block_on(2, async { journey::of_many_patients(&running_system(&system(kind, &[]).await)).await });
}

fn one_trace_from_the_request_to_analytics(kind: Kind) {
    let lines = [
        ("patient-service", "patient registered"),
        ("billing-service", "account opened"),
        ("analytics-service", "event read"),
    ];
    runtime::block_on(2, async {
        let system = system(kind, &[("LOG_LEVEL", "debug")]).await;
        traces::of_a_registration(&running_system(&system), &lines).await;
    });
}

fn no_personal_data_are_in_logs_metrics_or_exports(kind: Kind) {
    runtime::block_on(2, async {
        let collector = Collector::start(0);
        let endpoint = collector.endpoint();
        let settings = [
            ("LOG_LEVEL", "trace"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
        ];
        let system = system(kind, &settings).await;
        privacy::of_a_marked_patient(&running_system(&system)).await;
        // Every request has been exported, and so have the effects of the last one.
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

/// The addresses and logs of a test's system.
fn running_system(system: &System) -> RunningSystem {
    let files: Vec<(&str, PathBuf)> = system
        .patients
        .iter()
        .chain([&system.billing, &system.analytics])
        .map(|service| (service.launch().name, service.launch().log()))
        .collect();
    RunningSystem {
        patients: system.patient_client(),
        replicas: system.patients.iter().map(Service::client).collect(),
        billing: vec![system.billing.client()],
        analytics: vec![system.analytics.client()],
        analytics_metrics: vec![system.analytics.client()],
        log: Box::new(move |component| {
            let logs = files.iter().filter(|(name, _)| *name == component);
            logs.map(|(_, file)| fs::read_to_string(file).unwrap()).collect()
        }),
    }
}
