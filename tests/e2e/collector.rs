//! An OpenTelemetry collector for tests: receives exports and returns them.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use config::{Environment, Reader};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    metrics::v1::Metric,
    resource::v1::Resource,
    trace::v1::{Span as SpanMessage, span::SpanKind},
};
use prost::Message;
use runtime::Shutdown;
use smol::Task;
use tide::{Request, Response, StatusCode};
use web::{Limits, Problem, Router, Server};

/// The largest body that is read.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// The received exports, by signal.
#[derive(Clone, Debug, Default)]
struct Exports {
    traces: Vec<ExportTraceServiceRequest>,
    metrics: Vec<ExportMetricsServiceRequest>,
    logs: Vec<ExportLogsServiceRequest>,
}

type SharedExports = Arc<Mutex<Exports>>;

/// A running collector.
pub(crate) struct Collector {
    exports: SharedExports,
    port: u16,
    _serving: Task<()>,
}

/// A span that was exported.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) service: String,
    pub(crate) message: SpanMessage,
}

impl Collector {
    /// Starts one on this port; 0 takes a free one.
    pub(crate) fn start(port: u16) -> Self {
        let environment = Environment::empty().with("SERVER_PORT", port.to_string());
        let server = Server::bind(&web::Settings::read(&mut Reader::new(environment), "0")).unwrap();
        let (port, exports) = (server.address().port(), SharedExports::default());
        let app = Router::new(exports.clone())
            .post("/v1/traces", |request| receive(request, |sent| &mut sent.traces))
            .post("/v1/metrics", |request| receive(request, |sent| &mut sent.metrics))
            .post("/v1/logs", |request| receive(request, |sent| &mut sent.logs))
            .build();
        Self { exports, port, _serving: runtime::spawn(server.serve(app, Shutdown::new())) }
    }

    /// The value of `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    fn exports(&self) -> Exports {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All exports as text.
    pub(crate) fn text(&self) -> String {
        let Exports { traces, metrics, logs } = self.exports();
        let mut text = String::new();
        traces.iter().for_each(|request| writeln!(text, "{request:?}").unwrap());
        metrics.iter().for_each(|request| writeln!(text, "{request:?}").unwrap());
        logs.iter().for_each(|request| writeln!(text, "{request:?}").unwrap());
        text
    }

    /// All exported spans.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for resource in self.exports().traces.into_iter().flat_map(|request| request.resource_spans) {
            let service = service(resource.resource);
            for message in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span { service: service.clone(), message });
            }
        }
        spans
    }

    /// All exported log records, each with its service.
    pub(crate) fn lines(&self) -> Vec<(String, LogRecord)> {
        let mut lines = Vec::new();
        for resource in self.exports().logs.into_iter().flat_map(|request| request.resource_logs) {
            let service = service(resource.resource);
            let records = resource.scope_logs.into_iter().flat_map(|scope| scope.log_records);
            lines.extend(records.map(|record| (service.clone(), record)));
        }
        lines
    }

    /// The metrics in the last export of a service.
    pub(crate) fn metrics(&self, of: &str) -> Vec<Metric> {
        let all = self.exports().metrics.into_iter().rev().flat_map(|request| request.resource_metrics);
        let last = all.filter(|resource| service(resource.resource.clone()) == of).take(1);
        last.flat_map(|resource| resource.scope_metrics).flat_map(|scope| scope.metrics).collect()
    }

    /// The spans of a trace, ordered by their start.
    pub(crate) fn trace(&self, trace_id: &str) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| hex(&span.message.trace_id) == trace_id);
        spans.sort_by_key(|span| span.message.start_time_unix_nano);
        spans
    }
}

impl Span {
    /// The value of a string attribute.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        text(&self.message.attributes, name)
    }

    /// The value of an integer attribute.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        match value(&self.message.attributes, name)? {
            Value::IntValue(number) => Some(number),
            _ => None,
        }
    }

    /// Service, kind and name.
    pub(crate) fn title(&self) -> String {
        let kind = SpanKind::try_from(self.message.kind).unwrap().as_str_name().trim_start_matches("SPAN_KIND_");
        format!("{} {kind} {}", self.service, self.message.name)
    }
}

/// Each span of a trace with its parent: `child < parent`. A parent outside the trace is its id.
pub(crate) fn edges(trace: &[Span]) -> Vec<String> {
    let parent_of = |span: &Span| {
        let parent = trace.iter().find(|other| other.message.span_id == span.message.parent_span_id);
        parent.map_or_else(|| hex(&span.message.parent_span_id), Span::title)
    };
    let mut edges: Vec<_> = trace.iter().map(|span| format!("{} < {}", span.title(), parent_of(span))).collect();
    edges.sort();
    edges
}

async fn receive<M: Message + Default>(
    mut request: Request<SharedExports>,
    list: fn(&mut Exports) -> &mut Vec<M>,
) -> Result<Response, Problem> {
    let body = web::read_body(&mut request, &Limits { body: MAX_BODY, ..Limits::default() }).await?;
    let message = M::decode(&*body).map_err(|error| Problem::bad_request(error.to_string()))?;
    list(&mut request.state().lock().unwrap_or_else(PoisonError::into_inner)).push(message);
    Ok(Response::new(StatusCode::Ok))
}

/// The text of a string value.
pub(crate) fn string(value: &Option<AnyValue>) -> Option<&str> {
    match value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn service(resource: Option<Resource>) -> String {
    text(&resource.unwrap_or_default().attributes, "service.name").unwrap()
}

fn value(attributes: &[KeyValue], name: &str) -> Option<Value> {
    attributes.iter().find(|attribute| attribute.key == name)?.value.clone()?.value
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    match value(attributes, name)? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
