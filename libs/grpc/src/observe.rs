//! What holds for every call that a server answers: its span, its metrics, its trace.

use std::{
    future::Future,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::Instant,
};

use telemetry::{
    Span, TraceContext,
    metrics::{self, HistogramVec, IntCounterVec},
    span::{self, Kind},
};
use tonic::{
    Code,
    codegen::http::{Request, Response},
};
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::client::{STATUS_CODE, code_name, describe};

static CALLS: LazyLock<IntCounterVec> =
    LazyLock::new(|| metrics::counters("grpc_server_calls_total", "gRPC calls answered.", &["method", "code"]));
static LATENCY: LazyLock<HistogramVec> = LazyLock::new(|| {
    metrics::latencies("grpc_server_call_duration_seconds", "Time from a gRPC call to its answer's head.", &["method"])
});

#[derive(Clone, Copy, Debug)]
pub(crate) struct Observe;

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Observed<S> {
    inner: S,
}

impl<S, B, C> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<C>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let started = Instant::now();
        let header = request.headers().get(TraceContext::HEADER).and_then(|value| value.to_str().ok());
        let trace = TraceContext::continue_from(header);
        request.extensions_mut().insert(trace);
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let mut span = server_span(trace, &method);
        let lines = tracing::info_span!("call", trace_id = trace.trace_id(), method);
        let call = self.inner.call(request).instrument(lines);
        Box::pin(async move {
            let response = span.scope(call).await?;
            // A call that fails before its first message says so in the head; the others end well, as far as is known.
            let code =
                response.headers().get("grpc-status").map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()));
            // A method that does not exist is a client's word, which would grow the metrics without bound.
            let method = if code == Code::Unimplemented { "(none)" } else { &method };
            CALLS.with_label_values(&[method, code_name(code)]).inc();
            LATENCY.with_label_values(&[method]).observe(started.elapsed().as_secs_f64());
            describe(&mut span, method);
            span.set(STATUS_CODE, i64::from(code as i32));
            if is_fault(code) {
                span.fail(code_name(code))
            } else {
                span.end()
            }
            Ok(response)
        })
    }
}

/// The span of a call, which gets its name once it is known that there is such a method. Probes would only be noise.
fn server_span(trace: TraceContext, method: &str) -> Span {
    let operation = method.starts_with("grpc.");
    if operation || !span::is_collected() { Span::NONE } else { Span::start(trace, Kind::Server, "gRPC") }
}

/// Whether an answer tells of a fault of the server's, rather than of the call.
fn is_fault(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(code, DataLoss | DeadlineExceeded | Internal | Unavailable | Unimplemented | Unknown)
}
