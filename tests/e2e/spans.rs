//! The export of spans, log records and metrics to an OpenTelemetry collector.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    logs::v1::LogRecord,
    metrics::v1::{Metric, NumberDataPoint, metric::Data, number_data_point::Value as Number},
    trace::v1::Status,
};
use surf::http::Method;
use testbed::{broker::Kind, http::Client, ports, until};

use crate::{
    collector::{Collector, Span, edges, hex, string},
    fresh_system::system,
    support::{TIMEOUT, path, patient, register},
};

testbed::on_each_broker!(
    one_trace_has_a_span_for_each_step_with_its_parent,
    a_deletion_and_its_effects_are_in_one_trace,
    exported_log_lines_and_metrics_match_stdout_and_the_metrics_page,
    the_sampler_is_respected_and_an_unknown_value_is_one_warning,
    an_unavailable_collector_loses_spans_and_nothing_else
);

/// The caller's span in each trace here.
const PARENT: &str = "00f067aa0ba902b7";

async fn send(client: &Client, method: Method, path: &str, trace_id: &str, flags: &str) -> serde_json::Value {
    let parent = format!("00-{trace_id}-{PARENT}-{flags}");
    let body = (method == Method::Post).then(|| patient("Jane Doe"));
    let response = client.send(method, path, &[("traceparent", &parent)], body.as_ref()).await.unwrap();
    assert!(response.status < 300, "{}", response.text());
    response.json()
}

fn one_trace_has_a_span_for_each_step_with_its_parent(kind: Kind) {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const UNWANTED: &str = "11111111111111111111111111111111";
    runtime::block_on(2, async {
        let collector = Collector::start(0);
        let mut system = system(kind, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())]).await;
        let client = system.patient_client();
        // The first event may wait until its topic exists, which would add a span.
        send(&client, Method::Post, "/patients", UNWANTED, "00").await;
        system.until_summary(TIMEOUT, |summary| summary["created"] == 1).await.unwrap();
        let jane = send(&client, Method::Post, "/patients", TRACE, "01").await;
        until("the trace is whole", async || collector.trace(TRACE).len() >= 7).await;

        let trace = collector.trace(TRACE);
        let topic = &system.backing_services().topic;
        let mut expected = vec![
            format!("patient-service SERVER POST /patients < {PARENT}"),
            "patient-service CLIENT insert patient < patient-service SERVER POST /patients".to_owned(),
            "patient-service CLIENT BillingService/CreateBillingAccount < patient-service SERVER POST /patients".to_owned(),
            "billing-service SERVER BillingService/CreateBillingAccount < patient-service CLIENT BillingService/CreateBillingAccount".to_owned(),
            "billing-service CLIENT open account < billing-service SERVER BillingService/CreateBillingAccount".to_owned(),
            format!("patient-service PRODUCER send {topic} < patient-service SERVER POST /patients"),
            format!("analytics-service CONSUMER process {topic} < patient-service PRODUCER send {topic}"),
        ];
        expected.sort();
        assert_eq!(edges(&trace), expected);
        let span = |title: &str| trace.iter().find(|span| span.title().contains(title)).unwrap();
        let server = span("SERVER POST");
        assert_eq!(server.text("http.route").as_deref(), Some("/patients"));
        assert_eq!(server.number("http.response.status_code"), Some(201));
        assert_eq!(span("insert patient").text("db.system.name").as_deref(), Some("postgresql"));
        assert_eq!(span("billing-service SERVER").number("rpc.grpc.status_code"), Some(0));
        assert_eq!(span("CLIENT BillingService").text("peer.service").as_deref(), Some("billing-service"));
        // The same record, sent and read.
        assert_eq!(
            span("PRODUCER").number("messaging.kafka.offset"),
            span("CONSUMER").number("messaging.kafka.offset")
        );
        assert!(span("PRODUCER").number("messaging.kafka.offset").is_some());
        for span in &trace {
            let message = &span.message;
            assert_eq!(message.status.clone().unwrap_or_default(), Status::default(), "{span:?}");
            assert!(message.start_time_unix_nano < message.end_time_unix_nano, "{span:?}");
            let within = |other: &Span| other.message.start_time_unix_nano <= message.start_time_unix_nano;
            assert!(
                trace.iter().filter(|other| other.message.span_id == message.parent_span_id).all(within),
                "{span:?}"
            );
        }

        // The last spans are exported before the service ends.
        let (last, late) = ("22222222222222222222222222222222", collector.spans().len());
        send(&client, Method::Get, &path(&jane), last, "01").await;
        assert!(system.patients[0].stop().await.success());
        assert!(collector.spans().len() > late);
        let expected = [
            "patient-service CLIENT find patient < patient-service SERVER GET /patients/:id".to_owned(),
            format!("patient-service SERVER GET /patients/:id < {PARENT}"),
        ];
        assert_eq!(edges(&collector.trace(last)), expected);
        assert!(collector.trace(UNWANTED).is_empty(), "the caller did not sample it");
        // Root spans: the test's own requests for the summary alone.
        let mut own = collector.spans();
        own.retain(|span| span.message.parent_span_id.is_empty() && span.message.name != "GET /analytics/summary");
        assert!(own.is_empty(), "probes and background work have no spans: {own:?}");
    });
}

fn a_deletion_and_its_effects_are_in_one_trace(kind: Kind) {
    const TRACE: &str = "33333333333333333333333333333333";
    const FORBIDDEN: &str = "55555555555555555555555555555555";
    runtime::block_on(2, async {
        let collector = Collector::start(0);
        let system = system(kind, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())]).await;
        let client = system.patient_client();
        let jane = register(&client, "Jane Doe").await;
        system.until_summary(TIMEOUT, |summary| summary["created"] == 1).await.unwrap();

        // A deletion that its precondition forbids is decided by a transaction: its further statement is an event of its span.
        let headers = [("traceparent", &*format!("00-{FORBIDDEN}-{PARENT}-01")), ("if-match", "\"9\"")];
        let response = client.send(Method::Delete, &path(&jane), &headers, None).await.unwrap();
        assert_eq!(response.status, 412, "{}", response.text());
        until("the trace is whole", async || collector.trace(FORBIDDEN).len() >= 3).await;
        let trace = collector.trace(FORBIDDEN);
        let of_transaction = trace.iter().filter(|span| span.message.name == "delete patient");
        let statements: Vec<_> =
            of_transaction.flat_map(|span| &span.message.events).map(|event| event.name.as_str()).collect();
        assert_eq!(statements, ["patient exists"]);

        send(&client, Method::Delete, &path(&jane), TRACE, "01").await;
        until("the trace is whole", async || collector.trace(TRACE).len() >= 8).await;

        let trace = collector.trace(TRACE);
        let topic = &system.backing_services().topic;
        let mut expected = vec![
            format!("patient-service SERVER DELETE /patients/:id < {PARENT}"),
            "patient-service CLIENT delete patient < patient-service SERVER DELETE /patients/:id".to_owned(),
            format!("patient-service PRODUCER send {topic} < patient-service SERVER DELETE /patients/:id"),
            format!("analytics-service CONSUMER process {topic} < patient-service PRODUCER send {topic}"),
            "patient-service INTERNAL reconcile billing < patient-service SERVER DELETE /patients/:id".to_owned(),
            "patient-service CLIENT BillingService/CloseBillingAccount < patient-service INTERNAL reconcile billing".to_owned(),
            "billing-service SERVER BillingService/CloseBillingAccount < patient-service CLIENT BillingService/CloseBillingAccount".to_owned(),
            "billing-service CLIENT close account < billing-service SERVER BillingService/CloseBillingAccount".to_owned(),
        ];
        expected.sort();
        assert_eq!(edges(&trace), expected);
    });
}

fn exported_log_lines_and_metrics_match_stdout_and_the_metrics_page(kind: Kind) {
    const TRACE: &str = "44444444444444444444444444444444";
    runtime::block_on(2, async {
        let collector = Collector::start(0);
        let often =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()), ("OTEL_METRIC_EXPORT_INTERVAL", "200".to_owned())];
        let mut system = system(kind, &often.each_ref().map(|(name, value)| (*name, value.as_str()))).await;
        let client = system.patient_client();
        let jane = send(&client, Method::Post, "/patients", TRACE, "01").await;
        send(&client, Method::Delete, &path(&jane), TRACE, "01").await;

        // The same line is on stdout and in the export, in the same trace.
        let closed = |line: &str| line.contains("account closed") && line.contains(TRACE);
        until("the account is closed", async || system.billing.log().lines().any(closed)).await;
        let is_closed = |(service, line): &(String, LogRecord)| {
            service == "billing-service" && string(&line.body) == Some("account closed") && hex(&line.trace_id) == TRACE
        };
        until("the line is sent", async || collector.lines().iter().any(is_closed)).await;
        let (_, line) = collector.lines().into_iter().find(is_closed).unwrap();
        assert_eq!(line.severity_text, "INFO");
        // Spans and log records are exported independently.
        let is_call = |span: &Span| span.title() == "billing-service SERVER BillingService/CloseBillingAccount";
        until("the call is sent", async || collector.trace(TRACE).iter().any(is_call)).await;
        let call = collector.trace(TRACE).into_iter().find(is_call).unwrap();
        assert_eq!(hex(&line.span_id), hex(&call.message.span_id), "it was logged in the span of the call");
        let patient = line.attributes.iter().find(|attribute| attribute.key == "patient_id").unwrap();
        assert_eq!(string(&patient.value), jane["id"].as_str());

        // The export has the same value as the metrics page.
        let created = |metrics: &[Metric]| {
            let metric = metrics.iter().find(|metric| metric.name == "http_requests_total")?;
            let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
            let post = |point: &&NumberDataPoint| point.attributes.iter().any(|one| string(&one.value) == Some("POST"));
            sum.data_points.iter().find(post)?.value
        };
        until("the metrics are sent", async || created(&collector.metrics("patient-service")).is_some()).await;
        assert_eq!(created(&collector.metrics("patient-service")), Some(Number::AsDouble(1.0)));
        // A metric exists from its first use, so both lists grow for a while.
        until("what is sent is what is shown", async || {
            let page = client.get("/metrics").await.unwrap().text();
            let name = |line: &str| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned());
            let shown: BTreeSet<_> = page.lines().filter_map(name).collect();
            let sent = collector.metrics("patient-service").into_iter().map(|metric| metric.name);
            sent.collect::<BTreeSet<_>>() == shown
        })
        .await;
        // The last records are exported before the service ends.
        let before = collector.lines().len();
        assert!(system.patients[0].stop().await.success());
        assert!(collector.lines().len() > before, "the line about the stop is exported");
    });
}

fn the_sampler_is_respected_and_an_unknown_value_is_one_warning(kind: Kind) {
    const TRACE: &str = "55555555555555555555555555555555";
    runtime::block_on(2, async {
        let collector = Collector::start(0);
        let endpoint = collector.endpoint();
        let settings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "console"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0"),
        ];
        let system = system(kind, &settings).await;
        let client = system.patient_client();
        // Traces that start here are not sampled, and the decision is propagated.
        let jane = register(&client, "Jane Doe").await;
        let response = client.get(&path(&jane)).await.unwrap();
        assert!(response.header("traceparent").unwrap().ends_with("-00"));
        system.until_summary(TIMEOUT, |summary| summary["created"] == 1).await.unwrap();
        // A trace that the caller sampled is.
        send(&client, Method::Post, "/patients", TRACE, "01").await;
        let consumed = |span: &Span| span.title().starts_with("analytics-service CONSUMER");
        until("the caller's trace is recorded", async || collector.trace(TRACE).iter().any(consumed)).await;
        assert!(collector.spans().iter().all(|span| hex(&span.message.trace_id) == TRACE));
        for service in [&system.patients[0], &system.billing, &system.analytics] {
            for name in ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_TRACES_EXPORTER"] {
                let warning = |line: &&str| line.contains(&format!("{name}: expected "));
                assert_eq!(service.log().lines().filter(warning).count(), 1, "{name}: {}", service.log());
            }
        }
    });
}

fn an_unavailable_collector_loses_spans_and_nothing_else(kind: Kind) {
    runtime::block_on(2, async {
        let port = ports::free();
        let endpoint = format!("http://127.0.0.1:{port}");
        let system = system(kind, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;
        let client = system.patient_client();
        let jane = register(&client, "Jane Doe").await;
        let logged = |line: &str| system.patients[0].log().lines().filter(|found| found.contains(line)).count();
        let lost = async || {
            let metrics = client.get("/metrics").await.unwrap().text();
            metrics.lines().any(|line| {
                line.strip_prefix("otlp_items_total{outcome=\"failed\",signal=\"traces\"} ")
                    .is_some_and(|count| count != "0")
            })
        };
        let started = Instant::now();
        let mut slowest = Duration::ZERO;
        while !lost().await {
            let asked = Instant::now();
            assert_eq!(client.get(&path(&jane)).await.unwrap().status, 200);
            slowest = slowest.max(asked.elapsed());
            assert!(started.elapsed() < TIMEOUT, "no span is given up");
        }
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        // Another thread writes the log.
        until("it is told", async || logged("the collector takes no spans") > 0).await;
        assert_eq!(logged("the collector takes no spans"), 1);
        assert_eq!(logged("the collector takes spans again"), 0);

        let collector = Collector::start(port);
        until("the collector is told of", async || {
            client.get(&path(&jane)).await.unwrap();
            logged("the collector takes spans again") == 1
        })
        .await;
        assert!(collector.spans().iter().any(|span| span.message.name == "GET /patients/:id"));
        assert_eq!(logged("the collector takes no spans"), 1);
    });
}
