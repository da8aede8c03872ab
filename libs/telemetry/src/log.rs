//! Log lines: one JSON object each, or readable text on a terminal.
//!
//! A line carries the fields of its event and of every span around it; a span that belongs to a request carries
//! `trace_id`, so each line can be followed through the system. Log a failure once, where it is handled.
//!
//! A thread of its own writes the lines to stdout: a reader that stalls costs lines and blocks no other thread.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::{self, Write as _},
    fs::File,
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
    panic::PanicHookInfo,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use config::{Reader, Value};
use serde_json::{Map, Value as Json};
pub use tracing::Level;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use self::writer::{DROPPED, Writer};
use crate::TraceContext;

mod writer;

/// Bytes of lines that wait for stdout: a few thousand lines.
const QUEUE_BYTES: usize = 512 * 1024;
/// How long the process waits at its end for lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The crates to which `LOG_LEVEL` applies, besides the service's own. Lines of other crates are logged from WARN on.
const OWN_CRATES: [&str; 9] = ["auth", "grpc", "kafka", "otlp", "postgres", "runtime", "telemetry", "tls", "web"];

/// What is logged, and in which format.
#[derive(Clone, Debug)]
pub struct Settings {
    level: Verbosity,
    format: Format,
}

impl Settings {
    /// Reads `LOG_LEVEL` and `LOG_FORMAT`.
    pub fn read(reader: &mut Reader) -> Self {
        Self {
            level: reader.variable(&["LOG_LEVEL", "LOGGING_LEVEL_ROOT"], "the least severe lines to log").or("info"),
            format: reader.variable(&["LOG_FORMAT"], "format of the log lines").or("auto"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Verbosity(LevelFilter);

impl Value for Verbosity {
    const EXPECTED: &'static str = "off, error, warn, info, debug or trace";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| "it is no log level".to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Pretty,
    Auto,
}

impl Value for Format {
    const EXPECTED: &'static str = "json, pretty, or auto (pretty on a terminal)";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            "auto" => Ok(Self::Auto),
            _ => Err("it is no log format".to_owned()),
        }
    }
}

/// Writes the process's log lines to stdout from now on, and panics as log lines too, because a write to stderr can
/// block. Only the first call in a process takes effect.
///
/// # Errors
/// If the thread that writes them cannot be started.
pub fn init(service: &'static str, settings: &Settings) -> io::Result<()> {
    let Verbosity(level) = settings.level;
    let filter = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        // rskafka logs each failed attempt as an error, and libs/kafka reports the failure that remains.
        .with_target("rskafka", LevelFilter::OFF)
        .with_targets(OWN_CRATES.map(|target| (target, level)))
        .with_target(service.replace('-', "_"), level);
    let pretty = match settings.format {
        Format::Json => false,
        Format::Pretty => true,
        Format::Auto => io::stdout().is_terminal(),
    };
    let format = if pretty { pretty_line } else { json_line };
    // Not Rust's own stdout, which keeps bytes in its buffer after an error.
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let notice = move |count| {
        let line = dropped_line(count);
        if let Some(sink) = SINK.get() {
            sink(line.clone());
        }
        format(service, line)
    };
    let writer = Writer::start(QUEUE_BYTES, stdout, notice)?;
    let lines = writer.clone();
    let lines = LogLayer { service, format, write: move |line, is_urgent| lines.add(line, is_urgent) };
    // In a test with two services in one process, the first one's settings stay.
    if tracing_subscriber::registry().with(lines.with_filter(filter)).try_init().is_ok() {
        let _ = WRITER.set(writer);
        // So that it is shown from the start.
        DROPPED.inc_by(0);
        std::panic::set_hook(Box::new(log_panic));
    }
    Ok(())
}

static WRITER: OnceLock<Writer> = OnceLock::new();

/// Waits until the lines so far are written, one second at most. Call it before the process ends.
pub fn flush() {
    if let Some(writer) = WRITER.get() {
        writer.flush(FLUSH_TIMEOUT);
    }
}

/// The line that reports dropped lines, written where they are missing.
fn dropped_line(count: u64) -> Line {
    let mut fields = Map::new();
    fields.insert("message".to_owned(), "log lines were dropped, because nobody read stdout".into());
    fields.insert("lines".to_owned(), count.into());
    Line { time: SystemTime::now(), level: Level::WARN, target: module_path!(), fields, span: None }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let is_captured = backtrace.status() == BacktraceStatus::Captured;
    tracing::error!(
        thread = thread.name(),
        location = panic.location().map(tracing::field::display),
        panic = panic.payload_as_str(),
        backtrace = is_captured.then(|| tracing::field::display(&backtrace)),
        "a thread panicked"
    );
}

static SINK: OnceLock<Sink> = OnceLock::new();

type Sink = Box<dyn Fn(Line) + Send + Sync>;

/// Passes every line from now on to `sink` too, which must not block. Only the first call in a process takes effect.
pub fn collect(sink: impl Fn(Line) + Send + Sync + 'static) {
    // In a test with two services in one process, both use the first sink.
    let _ = SINK.set(Box::new(sink));
}

/// A log line, without the name of the service.
#[derive(Clone, Debug)]
pub struct Line {
    /// Time of the event.
    pub time: SystemTime,
    /// Severity.
    pub level: Level,
    /// The module that logged it.
    pub target: &'static str,
    /// The fields of the spans around the event, outermost first, then those of the event; later ones override.
    /// `message` is among them, and `trace_id` if the line belongs to a request.
    pub fields: Map<String, Json>,
    /// The span that was current, if it is recorded.
    pub span: Option<TraceContext>,
}

struct LogLayer<W> {
    service: &'static str,
    format: fn(&str, Line) -> String,
    write: W,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>, W: Fn(String, bool) + 'static> Layer<S> for LogLayer<W> {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.0.extend(outer.0.clone());
            }
        }
        event.record(&mut fields);
        let meta = event.metadata();
        let line = Line {
            time: SystemTime::now(),
            level: *meta.level(),
            target: meta.target(),
            fields: fields.0,
            span: TraceContext::current(),
        };
        if let Some(sink) = SINK.get() {
            sink(line.clone());
        }
        let is_urgent = line.level <= Level::WARN;
        (self.write)((self.format)(self.service, line), is_urgent);
    }
}

/// Collects the fields of a span or an event.
#[derive(Default)]
struct Fields(Map<String, Json>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Json>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

fn json_line(service: &str, line: Line) -> String {
    let mut object = Map::new();
    object.insert("time".to_owned(), timestamp(line.time).into());
    object.insert("level".to_owned(), line.level.as_str().into());
    object.insert("service".to_owned(), service.into());
    object.insert("target".to_owned(), line.target.into());
    object.extend(line.fields);
    let mut text = Json::Object(object).to_string();
    text.push('\n');
    text
}

fn pretty_line(service: &str, mut line: Line) -> String {
    let colour = match line.level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        _ => 90,
    };
    let message = line.fields.remove("message").unwrap_or_default();
    let mut text = format!(
        "{} \x1b[{colour}m{:5}\x1b[0m {} {}",
        timestamp(line.time),
        line.level.as_str(),
        service,
        message.as_str().unwrap_or_default()
    );
    for (name, value) in &line.fields {
        let _ = match value {
            Json::String(value) => write!(text, " \x1b[90m{name}=\x1b[0m{value}"),
            value => write!(text, " \x1b[90m{name}=\x1b[0m{value}"),
        };
    }
    text.push('\n');
    text
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(time: SystemTime) -> String {
    chrono::DateTime::<chrono::Utc>::from(time).to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static WRITTEN: RefCell<String> = const { RefCell::new(String::new()) };
    }

    fn lines_of(format: fn(&str, Line) -> String, work: impl FnOnce()) -> String {
        let write = |line: String, _: bool| WRITTEN.with_borrow_mut(|text| text.push_str(&line));
        let subscriber = tracing_subscriber::registry().with(LogLayer { service: "test-service", format, write });
        tracing::subscriber::with_default(subscriber, work);
        WRITTEN.take()
    }

    #[test]
    fn a_line_is_one_json_object_with_the_fields_of_its_spans() {
        let text = lines_of(json_line, || {
            let _request = tracing::info_span!("request", trace_id = "abc", version = 1).entered();
            let _step = tracing::info_span!("step", step = "store").entered();
            tracing::info!(version = 2, late = true, "patient \"stored\"\nat last");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let line: Json = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "patient \"stored\"\nat last");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["service"], "test-service");
        assert_eq!(line["trace_id"], "abc");
        assert_eq!(line["step"], "store");
        assert_eq!(line["version"], 2);
        assert_eq!(line["late"], true);
        assert_eq!(line["time"].as_str().map(str::len), Some("2024-01-01T00:00:00.000Z".len()));
    }

    #[test]
    fn pretty_lines_have_the_same_content() {
        let text = lines_of(pretty_line, || tracing::warn!(attempts = 3, "billing is unavailable"));
        assert!(text.contains("WARN") && text.contains("billing is unavailable") && text.contains("3"), "{text}");
    }

    #[test]
    fn settings_are_read_from_either_name() {
        let environment = config::Environment::empty().with("LOGGING_LEVEL_ROOT", "WARN");
        let settings = Settings::read(&mut Reader::new(environment));
        assert_eq!(settings.level.0, LevelFilter::WARN);
        assert!(Verbosity::parse("loud").is_err());
    }
}
