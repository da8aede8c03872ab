//! A collector of the test's own: takes what services export and shows it.

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

/// The largest request that is read.
const MOST: usize = 16 * 1024 * 1024;

/// What was sent, by signal.
#[derive(Clone, Debug, Default)]
struct Sent {
    traces: Vec<ExportTraceServiceRequest>,
    metrics: Vec<ExportMetricsServiceRequest>,
    logs: Vec<ExportLogsServiceRequest>,
}

type Books = Arc<Mutex<Sent>>;

/// A running collector.
pub(crate) struct Collector {
    books: Books,
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
        let (port, books) = (server.address().port(), Books::default());
        let app = Router::new(books.clone())
            .post("/v1/traces", |request| take(request, |sent| &mut sent.traces))
            .post("/v1/metrics", |request| take(request, |sent| &mut sent.metrics))
            .post("/v1/logs", |request| take(request, |sent| &mut sent.logs))
            .build();
        Self { books, port, _serving: runtime::spawn(server.serve(app, Shutdown::new())) }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` has to be.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    fn sent(&self) -> Sent {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every text in everything that was sent.
    pub(crate) fn text(&self) -> String {
        let Sent { traces, metrics, logs } = self.sent();
        let mut text = String::new();
        traces.iter().for_each(|request| writeln!(text, "{request:?}").unwrap());
        metrics.iter().for_each(|request| writeln!(text, "{request:?}").unwrap());
        logs.iter().for_each(|request| writeln!(text, "{request:?}").unwrap());
        text
    }

    /// Every span that was sent.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for resource in self.sent().traces.into_iter().flat_map(|request| request.resource_spans) {
            let service = service(resource.resource);
            for message in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span { service: service.clone(), message });
            }
        }
        spans
    }

    /// Every log line that was sent, with its service.
    pub(crate) fn lines(&self) -> Vec<(String, LogRecord)> {
        let mut lines = Vec::new();
        for resource in self.sent().logs.into_iter().flat_map(|request| request.resource_logs) {
            let service = service(resource.resource);
            let records = resource.scope_logs.into_iter().flat_map(|scope| scope.log_records);
            lines.extend(records.map(|record| (service.clone(), record)));
        }
        lines
    }

    /// The metrics of a service as they were sent last; none before.
    pub(crate) fn metrics(&self, of: &str) -> Vec<Metric> {
        let all = self.sent().metrics.into_iter().rev().flat_map(|request| request.resource_metrics);
        let last = all.filter(|resource| service(resource.resource.clone()) == of).take(1);
        last.flat_map(|resource| resource.scope_metrics).flat_map(|scope| scope.metrics).collect()
    }

    /// The spans of a trace, in the order of their beginnings.
    pub(crate) fn trace(&self, trace_id: &str) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| hex(&span.message.trace_id) == trace_id);
        spans.sort_by_key(|span| span.message.start_time_unix_nano);
        spans
    }
}

impl Span {
    /// An attribute that is text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        text(&self.message.attributes, name)
    }

    /// An attribute that is a number.
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

/// Each span of a trace with its parent: `child < parent`; a parent that is not among them by its id.
pub(crate) fn edges(trace: &[Span]) -> Vec<String> {
    let parent_of = |span: &Span| {
        let parent = trace.iter().find(|other| other.message.span_id == span.message.parent_span_id);
        parent.map_or_else(|| hex(&span.message.parent_span_id), Span::title)
    };
    let mut edges: Vec<_> = trace.iter().map(|span| format!("{} < {}", span.title(), parent_of(span))).collect();
    edges.sort();
    edges
}

async fn take<M: Message + Default>(
    mut request: Request<Books>,
    kept: fn(&mut Sent) -> &mut Vec<M>,
) -> Result<Response, Problem> {
    let body = web::read_body(&mut request, &Limits { body: MOST, ..Limits::default() }).await?;
    let message = M::decode(&*body).map_err(|error| Problem::bad_request(error.to_string()))?;
    kept(&mut request.state().lock().unwrap_or_else(PoisonError::into_inner)).push(message);
    Ok(Response::new(StatusCode::Ok))
}

/// The text in a value; none if there is other than text.
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
