//! The headers of a record on the dead-letter topic: they decode to a dead letter, a resend marker or a foreign record, and
//! encoding that again decodes to the same. A dead letter keeps all headers of its original record.

use arbitrary::Arbitrary;
use codec::{
    dead_letter::{self, Origin, RecordKind, add_headers, original_headers, resent_marker_headers},
    headers::Headers,
};

/// Fragments of the names of our headers.
const FRAGMENTS: [&str; 12] = [
    "dead-letter-",
    "dead-letter-2-",
    "dead-letter-3-",
    "dead-letter-03-",
    "dlq-",
    "topic",
    "partition",
    "offset",
    "error",
    "sent-again",
    "-",
    "18446744073709551615-",
];

/// The headers of a record.
#[derive(Arbitrary, Debug)]
pub struct Input {
    headers: Vec<(Vec<NameFragment>, Value)>,
    topic: String,
    place: (i32, i64),
    error: String,
}

#[derive(Arbitrary, Debug)]
enum NameFragment {
    Known(u8),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Value {
    None,
    Bytes(Vec<u8>),
    Text(String),
    Number(i64),
}

/// Decodes the headers.
pub fn check(input: Input) {
    let Input { headers, topic, place: (partition, offset), error } = input;
    let name = |parts: Vec<NameFragment>| {
        let part = |part| match part {
            NameFragment::Known(number) => FRAGMENTS[usize::from(number) % FRAGMENTS.len()].as_bytes().to_vec(),
            NameFragment::Bytes(bytes) => bytes,
        };
        parts.into_iter().flat_map(part).collect()
    };
    let value = |value| match value {
        Value::None => None,
        Value::Bytes(bytes) => Some(bytes),
        Value::Text(text) => Some(text.into_bytes()),
        Value::Number(number) => Some(number.to_string().into_bytes()),
    };
    let headers: Headers = headers.into_iter().map(|(parts, bytes)| (name(parts), value(bytes))).collect();

    let content = dead_letter::parse(&headers);
    match &content {
        RecordKind::DeadLetter { origin, error } => {
            let letter = add_headers(original_headers(headers.clone()), origin, error);
            assert_eq!(dead_letter::parse(&letter), content);
        }
        RecordKind::Resent { dead_letter: offset, sent_to } => {
            assert_eq!(dead_letter::parse(&resent_marker_headers(*offset, sent_to)), content);
        }
        RecordKind::Foreign => {}
    }

    let origin = Origin { topic, partition, offset };
    let letter = add_headers(headers.clone(), &origin, &error);
    let (theirs, ours) = letter.split_at(headers.len());
    assert_eq!(theirs, headers);
    assert!(ours.iter().all(|(name, _)| headers.iter().all(|(other, _)| name != other)));
    assert_eq!(dead_letter::parse(&letter), RecordKind::DeadLetter { origin, error });
    assert_eq!(original_headers(letter), headers);
}
