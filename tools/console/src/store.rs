//! The newest traces and log lines, in bounded memory. The least recently changed trace is evicted first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    mem::size_of,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use uuid::Uuid;

/// Most traces.
pub(crate) const MAX_TRACES: usize = 1000;
/// Most spans of one trace; later ones are counted and dropped.
pub(crate) const MAX_SPANS: usize = 512;
/// Most log lines.
pub(crate) const MAX_LINES: usize = 5000;
/// Bytes of all traces and of all log lines, 16 MiB together.
pub(crate) const MAX_TRACE_BYTES: usize = 12 * 1024 * 1024;
const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;
/// Most interned strings, and the longest one in bytes.
const MAX_INTERNED: usize = 2048;
const MAX_INTERNED_LENGTH: usize = 64;
/// Longest string in bytes, and most attributes and events of one span or line; the rest is cut off.
const MAX_TEXT: usize = 512;
const MAX_ATTRIBUTES: usize = 32;
const MAX_EVENTS: usize = 32;

pub(crate) type TraceId = [u8; 16];
pub(crate) type SpanId = [u8; 8];

/// The kind of a span, by OpenTelemetry's specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SpanKind {
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum AttributeValue {
    Text(Arc<str>),
    Integer(i64),
    Number(f64),
    Flag(bool),
}

pub(crate) type Attributes = Vec<(Arc<str>, AttributeValue)>;

/// A finished span. Times are nanoseconds since 1970.
#[derive(Clone, Debug)]
pub(crate) struct SpanRecord {
    pub(crate) id: SpanId,
    pub(crate) parent: Option<SpanId>,
    pub(crate) service: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) kind: SpanKind,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) error: Option<Arc<str>>,
    pub(crate) attributes: Attributes,
    pub(crate) events: Vec<(u64, Arc<str>)>,
}

impl SpanRecord {
    /// An attribute that is text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        text(&self.attributes, name)
    }

    /// An attribute that is a whole number, or a text that is one.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        number(&self.attributes, name)
    }
}

/// A log line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Grows with every line.
    pub(crate) id: u64,
    pub(crate) time: u64,
    pub(crate) service: Arc<str>,
    pub(crate) severity: Arc<str>,
    pub(crate) message: Arc<str>,
    pub(crate) trace: Option<TraceId>,
    pub(crate) span: Option<SpanId>,
    pub(crate) attributes: Attributes,
}

impl Line {
    /// An attribute that is text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        text(&self.attributes, name)
    }
}

/// An attribute that is text.
fn text<'a>(attributes: &'a Attributes, name: &str) -> Option<&'a str> {
    attributes.iter().find_map(|(key, value)| match value {
        AttributeValue::Text(text) if **key == *name => Some(&**text),
        _ => None,
    })
}

/// An attribute that is a whole number, or a text that is one.
pub(crate) fn number(attributes: &Attributes, name: &str) -> Option<i64> {
    attributes.iter().find(|(key, _)| **key == *name).and_then(|(_, value)| match value {
        AttributeValue::Integer(number) => Some(*number),
        AttributeValue::Text(text) => text.parse().ok(),
        AttributeValue::Number(_) | AttributeValue::Flag(_) => None,
    })
}

/// A write that the console itself has sent: known before any span of it arrives.
#[derive(Clone, Debug)]
pub(crate) struct SentWrite {
    pub(crate) at: u64,
    pub(crate) method: &'static str,
    pub(crate) route: &'static str,
    pub(crate) patient: Option<Uuid>,
    /// The version in the response.
    pub(crate) version: Option<i64>,
}

/// A trace: its spans, and what the console knows of it besides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    /// In the order of their arrival.
    pub(crate) spans: Vec<SpanRecord>,
    /// Spans beyond [`MAX_SPANS`].
    pub(crate) dropped: u64,
    pub(crate) write: Option<SentWrite>,
    /// The version of the patient that was read afterwards; 0 if it no longer existed.
    pub(crate) read_back: Option<i64>,
    /// The beginning of the earliest span; 0 before there is one.
    earliest: u64,
    /// Grows with every change of any trace.
    changed: u64,
    bytes: usize,
}

impl Trace {
    /// Start of the earliest span, else the time of the write; 0 if neither is known.
    pub(crate) fn started(&self) -> u64 {
        let written = self.write.as_ref().map(|write| write.at);
        if self.earliest > 0 { self.earliest } else { written.unwrap_or_default() }
    }
}

/// The store. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    traces: HashMap<TraceId, Trace>,
    /// By their last changes.
    order: BTreeMap<u64, TraceId>,
    trace_bytes: usize,
    lines: VecDeque<Line>,
    line_bytes: usize,
    last_line: u64,
    last_change: u64,
    evicted: u64,
    interned: HashSet<Arc<str>>,
}

/// What the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Size {
    pub(crate) traces: usize,
    pub(crate) lines: usize,
    pub(crate) bytes: usize,
    pub(crate) evicted: u64,
}

impl Store {
    /// Adds spans to their traces. One that is there already, because its batch was sent twice, is not added again.
    pub(crate) fn add_spans(&self, spans: Vec<(TraceId, SpanRecord)>) {
        let mut inner = self.lock();
        for (id, span) in spans {
            let span = inner.bounded(span);
            inner.change(id, |trace| {
                if trace.spans.iter().any(|other| other.id == span.id) {
                    return;
                }
                if trace.spans.len() < MAX_SPANS {
                    trace.bytes += bytes_of_span(&span);
                    trace.earliest = if trace.spans.is_empty() { span.start } else { trace.earliest.min(span.start) };
                    trace.spans.push(span);
                } else {
                    trace.dropped += 1;
                }
            });
        }
        inner.evict();
    }

    /// Adds log lines.
    pub(crate) fn add_lines(&self, lines: Vec<Line>) {
        let mut inner = self.lock();
        for mut line in lines {
            inner.last_line += 1;
            line.id = inner.last_line;
            line.service = inner.intern(&line.service);
            line.severity = inner.intern(&line.severity);
            line.message = inner.intern(&line.message);
            line.attributes = inner.bounded_attributes(line.attributes);
            if let Some(trace) = line.trace.filter(|trace| inner.traces.contains_key(trace)) {
                inner.change(trace, |_| ());
            }
            inner.line_bytes += bytes_of_line(&line);
            inner.lines.push_back(line);
            while inner.lines.len() > MAX_LINES || inner.line_bytes > MAX_LINE_BYTES {
                let Some(oldest) = inner.lines.pop_front() else { break };
                inner.line_bytes -= bytes_of_line(&oldest);
            }
        }
    }

    /// Records a write that is about to be sent.
    pub(crate) fn start_write(&self, id: TraceId, write: SentWrite) {
        let mut inner = self.lock();
        inner.change(id, |trace| trace.write = Some(write));
        inner.evict();
    }

    /// Changes a trace if the store has it, such as by the response to its write.
    pub(crate) fn update(&self, id: TraceId, update: impl FnOnce(&mut Trace)) {
        let mut inner = self.lock();
        if inner.traces.contains_key(&id) {
            inner.change(id, update);
        }
    }

    /// Reads a trace and its log lines, oldest first; none if the store does not have it.
    pub(crate) fn read<T>(&self, id: &TraceId, read: impl FnOnce(&Trace, &[&Line]) -> T) -> Option<T> {
        let inner = self.lock();
        let trace = inner.traces.get(id)?;
        let lines: Vec<_> = inner.lines.iter().filter(|line| line.trace.as_ref() == Some(id)).collect();
        Some(read(trace, &lines))
    }

    /// Reads up to `limit` traces, newest first; those for which `read` returns none do not count.
    pub(crate) fn newest<T>(&self, limit: usize, read: impl Fn(&TraceId, &Trace) -> Option<T>) -> Vec<T> {
        let inner = self.lock();
        let mut traces: Vec<_> = inner.traces.iter().collect();
        traces.sort_by_key(|(id, trace)| (Reverse(trace.started()), **id));
        traces.into_iter().filter_map(|(id, trace)| read(id, trace)).take(limit).collect()
    }

    /// The newest lines that match, newest first.
    pub(crate) fn lines(&self, limit: usize, matches: impl Fn(&Line) -> bool) -> Vec<Line> {
        self.lock().lines.iter().rev().filter(|line| matches(line)).take(limit).cloned().collect()
    }

    /// What it holds.
    pub(crate) fn size(&self) -> Size {
        let inner = self.lock();
        let Inner { traces, lines, trace_bytes, line_bytes, evicted, .. } = &*inner;
        Size { traces: traces.len(), lines: lines.len(), bytes: trace_bytes + line_bytes, evicted: *evicted }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Changes a trace, which is made if it is new.
    fn change(&mut self, id: TraceId, change: impl FnOnce(&mut Trace)) {
        self.last_change += 1;
        let trace =
            self.traces.entry(id).or_insert_with(|| Trace { bytes: size_of::<(TraceId, Trace)>(), ..Trace::default() });
        let before = if trace.changed == 0 { 0 } else { trace.bytes };
        self.order.remove(&trace.changed);
        change(trace);
        trace.changed = self.last_change;
        self.trace_bytes = self.trace_bytes + trace.bytes - before;
        self.order.insert(self.last_change, id);
    }

    fn evict(&mut self) {
        while self.traces.len() > MAX_TRACES || self.trace_bytes > MAX_TRACE_BYTES {
            let Some((_, id)) = self.order.pop_first() else { return };
            if let Some(trace) = self.traces.remove(&id) {
                self.trace_bytes -= trace.bytes;
                self.evicted += 1;
            }
        }
    }

    fn bounded(&mut self, span: SpanRecord) -> SpanRecord {
        let mut events: Vec<_> =
            span.events.iter().take(MAX_EVENTS).map(|(at, name)| (*at, self.intern(name))).collect();
        events.shrink_to_fit();
        SpanRecord {
            service: self.intern(&span.service),
            name: self.intern(&span.name),
            error: span.error.map(|error| self.intern(&error)),
            attributes: self.bounded_attributes(span.attributes),
            events,
            ..span
        }
    }

    fn bounded_attributes(&mut self, mut attributes: Attributes) -> Attributes {
        attributes.truncate(MAX_ATTRIBUTES);
        for (name, value) in &mut attributes {
            *name = self.intern(name);
            if let AttributeValue::Text(text) = value {
                *text = self.intern(text);
            }
        }
        attributes.shrink_to_fit();
        attributes
    }

    /// The same text: shared if it is short, truncated if it is long.
    fn intern(&mut self, text: &Arc<str>) -> Arc<str> {
        if text.len() > MAX_INTERNED_LENGTH {
            let end = (0..=MAX_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
            return if end == text.len() { text.clone() } else { text[..end].into() };
        }
        if let Some(known) = self.interned.get(text) {
            return known.clone();
        }
        // The strings that are in use stay in memory: their owners share them.
        if self.interned.len() >= MAX_INTERNED {
            self.interned.clear();
        }
        self.interned.insert(text.clone());
        text.clone()
    }
}

/// Bytes of a string that may not be shared, with its reference counters.
fn bytes_of_text(text: &str) -> usize {
    text.len() + 2 * size_of::<usize>()
}

fn bytes_of_attributes(attributes: &Attributes) -> usize {
    let texts = attributes.iter().map(|(_, value)| match value {
        AttributeValue::Text(text) => bytes_of_text(text),
        _ => 0,
    });
    attributes.len() * size_of::<(Arc<str>, AttributeValue)>() + texts.sum::<usize>()
}

fn bytes_of_span(span: &SpanRecord) -> usize {
    let error = span.error.as_ref().map_or(0, |error| bytes_of_text(error));
    // The names of spans, services and attributes are few.
    size_of::<SpanRecord>()
        + error
        + bytes_of_attributes(&span.attributes)
        + span.events.len() * size_of::<(u64, Arc<str>)>()
}

fn bytes_of_line(line: &Line) -> usize {
    size_of::<Line>() + bytes_of_text(&line.message) + bytes_of_attributes(&line.attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: u64, attributes: usize) -> SpanRecord {
        let attribute = |number: usize| (Arc::from(format!("a{number}")), AttributeValue::Text("x".repeat(200).into()));
        SpanRecord {
            id: id.to_be_bytes(),
            parent: None,
            service: "s".into(),
            name: "n".into(),
            kind: SpanKind::Internal,
            start: id,
            end: id + 1,
            error: None,
            attributes: (0..attributes).map(attribute).collect(),
            events: Vec::new(),
        }
    }

    fn trace(number: u128) -> TraceId {
        number.to_be_bytes()
    }

    #[test]
    fn the_trace_that_is_unchanged_for_longest_goes_first() {
        let store = Store::default();
        for number in 1..=MAX_TRACES as u128 {
            store.add_spans(vec![(trace(number), span(1, 0))]);
        }
        store.add_spans(vec![(trace(1), span(2, 0))]);
        store.add_spans(vec![(trace(5000), span(1, 0))]);
        assert_eq!(store.size().traces, MAX_TRACES);
        assert!(store.read(&trace(1), |trace, _| trace.spans.len() == 2).unwrap());
        assert!(store.read(&trace(2), |_, _| ()).is_none());
        assert_eq!(store.newest(2, |id, _| Some(*id)), [trace(1), trace(3)]);
    }

    #[test]
    fn bytes_are_bounded_whatever_comes() {
        let store = Store::default();
        for number in 0..100 {
            store.add_spans((0..40).map(|id| (trace(number), span(id, 40))).collect());
        }
        let size = store.size();
        assert!(size.bytes <= MAX_TRACE_BYTES && size.bytes > MAX_TRACE_BYTES / 2 && size.evicted > 0, "{size:?}");
        let line = |message: String| Line {
            id: 0,
            time: 0,
            service: "s".into(),
            severity: "INFO".into(),
            message: message.into(),
            trace: None,
            span: None,
            attributes: Vec::new(),
        };
        store.add_lines((0..2 * MAX_LINES).map(|number| line(number.to_string())).collect());
        assert_eq!(store.size().lines, MAX_LINES);
        assert_eq!(&*store.lines(1, |_| true)[0].message, (2 * MAX_LINES - 1).to_string());
        store.add_lines((0..2 * MAX_LINES).map(|_| line("é".repeat(600))).collect());
        assert!(store.size().bytes <= MAX_TRACE_BYTES + MAX_LINE_BYTES);
    }

    #[test]
    fn a_trace_has_so_many_spans_and_each_once() {
        let store = Store::default();
        for _ in 0..2 {
            store.add_spans((0..2 * MAX_SPANS as u64).map(|id| (trace(1), span(id, 0))).collect());
        }
        let (spans, dropped) = store.read(&trace(1), |trace, _| (trace.spans.len(), trace.dropped)).unwrap();
        assert_eq!(spans, MAX_SPANS);
        assert!(dropped >= MAX_SPANS as u64);
    }
}
