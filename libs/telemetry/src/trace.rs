use std::fmt;

use crate::sampler;

/// The ids of a span in its trace: the W3C Trace Context, version 00.
///
/// It is a plain value with the ids of the trace, the span and its parent. Code that works on behalf of a request
/// passes it on; a [`Span`](crate::Span) records the span that it identifies.
///
/// ```
/// use telemetry::TraceContext;
///
/// let request = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
/// let call = request.child();
/// assert_eq!(call.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert_ne!(call.span_id(), request.span_id());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    /// 0 for the root span.
    parent_id: u64,
    sampled: bool,
}

impl TraceContext {
    /// The name of the header, in HTTP, in gRPC metadata and on Kafka records.
    pub const HEADER: &'static str = "traceparent";

    /// The root of a new trace; the [`sampler`] decides whether it is recorded.
    pub fn root() -> Self {
        let trace_id = fastrand::u128(1..);
        let sampled = sampler::decide(trace_id, None);
        Self { trace_id, span_id: fastrand::u64(1..), parent_id: 0, sampled }
    }

    /// A child span in the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span_id: fastrand::u64(1..), parent_id: self.span_id, ..self }
    }

    /// A child of the context in a caller's `traceparent`; a new root if there is none or it is malformed, as the
    /// specification demands. The [`sampler`] decides whether it is recorded.
    pub fn continue_from(header: Option<&str>) -> Self {
        header.and_then(Self::parse).map_or_else(Self::root, |caller| {
            let sampled = sampler::decide(caller.trace_id, Some(caller.sampled));
            Self { sampled, ..caller.child() }
        })
    }

    /// Reads a `traceparent`. Later versions may append fields, which are ignored.
    pub fn parse(header: &str) -> Option<Self> {
        let mut fields = header.split('-');
        let (version, trace_id) = (hex(fields.next()?, 2)?, hex(fields.next()?, 32)?);
        let (span_id, flags) = (hex(fields.next()?, 16)?, hex(fields.next()?, 2)?);
        let too_long = version == 0 && fields.next().is_some();
        if version == 0xff || too_long || trace_id == 0 || span_id == 0 {
            return None;
        }
        Some(Self { trace_id, span_id: span_id as u64, parent_id: 0, sampled: flags & 1 == 1 })
    }

    /// 32 lower-case hexadecimal digits.
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// 16 lower-case hexadecimal digits.
    pub fn span_id(self) -> String {
        format!("{:016x}", self.span_id)
    }

    /// Whether the trace is to be recorded.
    pub fn sampled(self) -> bool {
        self.sampled
    }

    /// The ids as bytes, in the order of the header: of the trace, of the span, and of its parent if it has one.
    pub fn ids(self) -> ([u8; 16], [u8; 8], Option<[u8; 8]>) {
        let parent = (self.parent_id != 0).then(|| self.parent_id.to_be_bytes());
        (self.trace_id.to_be_bytes(), self.span_id.to_be_bytes(), parent)
    }
}

/// The text of the `traceparent` header.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

/// Exactly `digits` lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let right = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    right.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_that_was_written_is_parsed_again() {
        assert_eq!(TraceContext::parse(PARENT).unwrap().to_string(), PARENT);
        let root = TraceContext::root();
        assert_eq!(TraceContext::parse(&root.to_string()), Some(root));
    }

    #[test]
    fn a_malformed_header_begins_a_new_trace() {
        for wrong in [
            "",
            "00",
            "00-0-0-0",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(wrong), None, "{wrong}");
        }
        assert!(TraceContext::parse("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-ever").is_some());
    }

    #[test]
    fn a_child_keeps_the_trace() {
        let child = TraceContext::continue_from(Some(PARENT));
        assert_eq!(child.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(child.span_id(), "00f067aa0ba902b7");
        let (_, _, parent) = child.ids();
        assert_eq!(parent.map(u64::from_be_bytes), Some(0x00f067aa0ba902b7));
        assert_ne!(TraceContext::continue_from(None).trace_id(), child.trace_id());
    }
}
