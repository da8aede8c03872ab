//! Spans, metrics and log context of a server's calls.

use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use telemetry::{
    Propagated, Span, TraceContext,
    metrics::{self, HistogramVec, IntCounterVec},
    span::{self, SpanKind},
};
use tonic::{
    Code, Status,
    codegen::http::{Request, Response},
};
use tracing::Instrument as _;

use crate::code::{STATUS_CODE, code_name, describe};

/// The status, in the headers or the trailers of a response.
const STATUS: &str = "grpc-status";

static CALLS: LazyLock<IntCounterVec> =
    LazyLock::new(|| metrics::counters("grpc_server_calls_total", "gRPC calls answered.", &["method", "code"]));
static LATENCY: LazyLock<HistogramVec> = LazyLock::new(|| {
    metrics::latencies(
        "grpc_server_call_duration_seconds",
        "Time from a gRPC call to the headers of its response.",
        &["method"],
    )
});

/// The methods of the services in these encoded `FileDescriptorSet`s, as `Service/Method`.
///
/// # Errors
/// If one is malformed.
pub(crate) fn methods(sets: &[&[u8]]) -> Result<HashSet<String>, prost::DecodeError> {
    let mut methods = HashSet::new();
    for set in sets {
        for file in FileDescriptorSet::decode(*set)?.file {
            let package = file.package.filter(|package| !package.is_empty()).map(|package| package + ".");
            let package = package.unwrap_or_default();
            for service in file.service {
                let names = service.method.iter().map(|method| method.name());
                methods.extend(names.map(|name| format!("{package}{}/{name}", service.name())));
            }
        }
    }
    Ok(methods)
}

/// Handles a call, with its span, log context and metrics.
pub(crate) async fn observe<B, F>(
    mut request: Request<B>,
    methods: &HashSet<String>,
    respond: impl FnOnce(Request<B>) -> F,
) -> Response<ObservedBody>
where
    F: Future<Output = Response<tonic::body::Body>>,
{
    let started = Instant::now();
    let header = request.headers().get(TraceContext::HEADER).and_then(|value| value.to_str().ok());
    let trace = TraceContext::continue_from(header);
    let propagated =
        Propagated::extract(|name| request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok()));
    request.extensions_mut().insert(trace);
    // Names of methods that do not exist come from clients, and would be an unbounded label.
    let path = request.uri().path().trim_start_matches('/');
    let method = if methods.contains(path) { path } else { "(none)" }.to_owned();
    let mut span = server_span(trace, &method);
    let log_context = tracing::info_span!("call", trace_id = trace.trace_id(), method);
    let response = propagated.scope(span.scope(respond(request).instrument(log_context))).await;
    // A call that fails before its first message has its status in the headers, any other in the trailers.
    let failed = response.headers().get(STATUS).map(|value| Code::from_bytes(value.as_bytes()));
    let code = failed.unwrap_or(Code::Ok);
    LATENCY.with_label_values(&[&method]).observe(started.elapsed().as_secs_f64());
    describe(&mut span, &method);
    span.set(STATUS_CODE, i64::from(code as i32));
    if is_fault(code) {
        span.fail(code_name(code))
    } else {
        span.end()
    }
    response.map(|body| {
        let mut observed = ObservedBody { body, method: Some(method) };
        if let Some(code) = failed {
            observed.count(code);
        }
        observed
    })
}

/// The body of a response; its end is counted.
pub(crate) struct ObservedBody {
    body: tonic::body::Body,
    /// None once it has been counted.
    method: Option<String>,
}

impl ObservedBody {
    fn count(&mut self, code: Code) {
        if let Some(method) = self.method.take() {
            CALLS.with_label_values(&[&method, code_name(code)]).inc();
        }
    }
}

impl Body for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(status) = frame.trailers_ref().and_then(|trailers| trailers.get(STATUS))
        {
            self.count(Code::from_bytes(status.as_bytes()));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ObservedBody {
    fn drop(&mut self) {
        // The client has reset the stream, or the response was aborted.
        self.count(Code::Cancelled);
    }
}

/// The span of a call. Its name is set once it is known that the method exists. Health checks and reflection have none.
fn server_span(trace: TraceContext, method: &str) -> Span {
    let operation = method.starts_with("grpc.");
    if operation || !span::is_collected() { Span::NONE } else { Span::start(trace, SpanKind::Server, "gRPC") }
}

/// Whether a status is the server's fault, rather than the client's.
fn is_fault(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(code, DataLoss | DeadlineExceeded | Internal | Unavailable | Unimplemented | Unknown)
}
