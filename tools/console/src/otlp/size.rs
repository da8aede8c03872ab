//! What a message of OTLP takes once it is decoded, which can be a hundred times its bytes: an empty span is two bytes, and a
//! struct of some 300.

use prost::{
    DecodeError,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// Texts and messages within a message at most. The services send up to 512 spans, each with some 25: ids, a name, and four
/// for an attribute that is a text (the pair, its key, its value, and the text in that).
const MAX_FIELDS: usize = 30_000;

/// A message that repeats messages or texts.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    TraceRequest,
    ResourceSpans,
    ScopeSpans,
    Span,
    Event,
    Link,
    LogsRequest,
    ResourceLogs,
    ScopeLogs,
    LogRecord,
    Resource,
    Scope,
    Entity,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
}

/// Why a message is not decoded.
pub(crate) enum Error {
    /// It is not OTLP.
    Malformed,
    /// It has too many parts.
    TooLarge,
}

impl From<DecodeError> for Error {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

impl Kind {
    /// The message in a field of this number.
    fn field(self, number: u32) -> Option<Self> {
        Some(match (self, number) {
            (Self::TraceRequest, 1) => Self::ResourceSpans,
            (Self::LogsRequest, 1) => Self::ResourceLogs,
            (Self::ResourceSpans | Self::ResourceLogs, 1) => Self::Resource,
            (Self::ResourceSpans, 2) => Self::ScopeSpans,
            (Self::ResourceLogs, 2) => Self::ScopeLogs,
            (Self::ScopeSpans | Self::ScopeLogs, 1) => Self::Scope,
            (Self::ScopeSpans, 2) => Self::Span,
            (Self::ScopeLogs, 2) => Self::LogRecord,
            (Self::Span, 11) => Self::Event,
            (Self::Span, 13) => Self::Link,
            (Self::Resource, 3) => Self::Entity,
            (Self::Span, 9)
            | (Self::Event | Self::Scope, 3)
            | (Self::Link, 4)
            | (Self::LogRecord, 6)
            | (Self::Resource | Self::KeyValueList, 1) => Self::KeyValue,
            (Self::KeyValue, 2) | (Self::LogRecord, 5) | (Self::ArrayValue, 1) => Self::AnyValue,
            (Self::AnyValue, 5) => Self::ArrayValue,
            (Self::AnyValue, 6) => Self::KeyValueList,
            _ => return None,
        })
    }
}

/// Checks the number of parts of a message before it is decoded.
///
/// # Errors
/// If it has too many, or is malformed; decoding finds the rest of what is wrong.
pub(super) fn check(kind: Kind, bytes: &[u8]) -> Result<(), Error> {
    let mut fields = 0;
    // Not recursive, because messages may contain each other as deep as there are bytes.
    let mut messages = vec![(kind, bytes)];
    while let Some((kind, mut rest)) = messages.pop() {
        while !rest.is_empty() {
            let (number, wire_type) = decode_key(&mut rest)?;
            if wire_type != WireType::LengthDelimited {
                skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
                continue;
            }
            let length = usize::try_from(decode_varint(&mut rest)?).map_err(|_| Error::Malformed)?;
            let (content, after) = rest.split_at_checked(length).ok_or(Error::Malformed)?;
            rest = after;
            fields += 1;
            if fields > MAX_FIELDS {
                return Err(Error::TooLarge);
            }
            messages.extend(kind.field(number).map(|kind| (kind, content)));
        }
    }
    Ok(())
}
