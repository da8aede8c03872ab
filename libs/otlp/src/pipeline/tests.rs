use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime},
};

use config::{Environment, Reader};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use runtime::Shutdown;
use surf::StatusCode;
use telemetry::{
    TraceContext, metrics,
    span::{FinishedSpan, SpanKind},
};
use tide::{Request, Response};
use web::{Limits, Problem, Router, Server};

use super::*;
use crate::Settings;

const TIMEOUT: Duration = Duration::from_secs(20);

/// The requests that a collector received, and its responses.
#[derive(Clone)]
struct Collected {
    sent: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    calls: Arc<AtomicUsize>,
    /// The status of the nth answer; with `None` it never answers.
    response: fn(usize) -> Option<u16>,
}

impl Collected {
    fn sizes(&self) -> Vec<usize> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter().map(|request| request.resource_spans[0].scope_spans[0].spans.len()).collect()
    }
}

async fn take(mut request: Request<Collected>) -> Result<Response, Problem> {
    let body = web::read_body(&mut request, &Limits { body: 16 * 1024 * 1024, ..Limits::default() }).await?;
    let collected = request.state();
    assert_eq!(request.header("content-type").map(|value| value.as_str()), Some("application/x-protobuf"));
    assert_eq!(request.header("x-tenant").map(|value| value.as_str()), Some("a"));
    let call = collected.calls.fetch_add(1, Ordering::SeqCst);
    let Some(status) = (collected.response)(call) else { return std::future::pending().await };
    if status == 200 {
        let message = ExportTraceServiceRequest::decode(&*body).unwrap();
        collected.sent.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }
    Ok(Response::new(StatusCode::try_from(status).unwrap()))
}

/// Runs a test on a pipeline with a collector that answers like this. Returns the requests that it received, and how long the
/// pipeline took to shut down.
fn with_collector(
    response: fn(usize) -> Option<u16>,
    test: impl AsyncFnOnce(&SpanPipeline, &Collected),
) -> (Collected, Duration) {
    let collected = Collected { sent: Arc::default(), calls: Arc::default(), response };
    let stopped_in = runtime::block_on(2, async {
        let port = Environment::empty().with("SERVER_PORT", "0");
        let server = Server::bind(&web::Settings::read(&mut Reader::new(port), "0")).unwrap();
        // A host name, so that it is resolved.
        let endpoint = format!("http://localhost:{}", server.address().port());
        let app = Router::new(collected.clone()).post("/v1/traces", take).build();
        let serving = runtime::spawn(server.serve(app, Shutdown::new()));
        let environment = Environment::empty()
            .with("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .with("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a");
        let settings = Settings::read(&mut Reader::new(environment), "test-service");
        let spans = SpanPipeline::new(settings.traces.unwrap(), &Resource::builder_empty().build());
        test(&spans, &collected).await;
        let stopping = Instant::now();
        let _ = smol::unblock(move || spans.shutdown()).await;
        drop(serving);
        stopping.elapsed()
    });
    (collected, stopped_in)
}

fn span() -> FinishedSpan {
    FinishedSpan {
        context: TraceContext::root(),
        kind: SpanKind::Internal,
        name: "work".into(),
        started: SystemTime::now(),
        duration: Duration::from_millis(1),
        attributes: Vec::new(),
        events: Vec::new(),
        link: None,
        error: None,
    }
}

/// Spans dropped so far.
fn dropped() -> u64 {
    let text = String::from_utf8(metrics::render()).unwrap();
    let name = "otlp_items_total{outcome=\"dropped\",signal=\"traces\"} ";
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !happened() {
        assert!(Instant::now() < end, "it has not happened: {what}");
        smol::Timer::after(Duration::from_millis(5)).await;
    }
}

#[test]
fn full_batches_are_sent_at_once_and_the_rest_at_shutdown() {
    let (collected, _) = with_collector(
        |_| Some(200),
        async |queue, collected| {
            (0..2 * BATCH_SIZE).for_each(|_| queue.add(span()));
            until("a full batch", || collected.sizes().first() == Some(&BATCH_SIZE)).await;
            queue.add(span());
        },
    );
    let sizes = collected.sizes();
    assert!(sizes.iter().all(|size| *size <= BATCH_SIZE), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 2 * BATCH_SIZE + 1, "{sizes:?}");
}

#[test]
fn a_partial_batch_is_sent_after_the_scheduled_delay() {
    with_collector(
        |_| Some(200),
        async |queue, collected| {
            queue.add(span());
            until("one batch", || collected.sizes() == [1]).await;
        },
    );
}

#[test]
fn a_batch_is_retried_until_the_collector_accepts_it() {
    let (collected, _) = with_collector(
        |call| Some(if call < 2 { 503 } else { 200 }),
        async |queue, collected| {
            queue.add(span());
            until("one batch", || collected.sizes() == [1]).await;
        },
    );
    assert_eq!(collected.calls.load(Ordering::SeqCst), 3);
}

#[test]
fn a_batch_that_the_collector_rejects_is_not_retried() {
    let (collected, _) = with_collector(
        |call| Some(if call == 0 { 400 } else { 200 }),
        async |queue, collected| {
            queue.add(span());
            until("a refusal", || collected.calls.load(Ordering::SeqCst) == 1).await;
            queue.add(span());
            queue.add(span());
            until("the next batch", || collected.sizes() == [2]).await;
        },
    );
    assert_eq!(collected.calls.load(Ordering::SeqCst), 2);
}

#[test]
fn a_collector_that_hangs_costs_spans_and_no_more() {
    let (collected, stopped_in) = with_collector(
        |_| None,
        async |queue, collected| {
            queue.add(span());
            until("a call", || collected.calls.load(Ordering::SeqCst) == 1).await;
            let before = dropped();
            let started = Instant::now();
            (0..QUEUE_SIZE + 1000).for_each(|_| queue.add(span()));
            assert!(started.elapsed() < Duration::from_secs(1), "nobody waits for the collector");
            assert_eq!(queue.waiting(), QUEUE_SIZE);
            assert_eq!(dropped() - before, 1000);
        },
    );
    assert!(collected.sizes().is_empty());
    assert!(stopped_in < FLUSH_TIMEOUT + Duration::from_secs(1), "{stopped_in:?}");
}
