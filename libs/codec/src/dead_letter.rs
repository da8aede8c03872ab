//! Headers of dead letters: which record a dead letter was, why it could not be decoded, and whether it was sent again.
//!
//! A dead letter has the original's key, value and headers: all of them, in order, with duplicate names and null values. Four
//! headers follow: `dead-letter-topic`, `dead-letter-partition`, `dead-letter-offset`, and `dead-letter-error` or, in a resent
//! marker, `dead-letter-sent-again`. If a header of the original begins with `dead-letter-`, as after a dead letter was sent
//! to a topic of events, the prefix is `dead-letter-2-`, or the first higher number that no original header begins with. So
//! names never clash, and the last four headers are ours.
//!
//! Until 2026 these headers were named `dlq-topic` and so on, stood in any order, and replaced headers of the original that
//! had the same name. Such dead letters can still be parsed.

use std::collections::BTreeSet;

use crate::headers::{Header, Headers, header, text};

/// The prefix of our header names, unless the original has names that begin with it.
const PREFIX: &str = "dead-letter-";
/// Suffixes of our header names.
const TOPIC: &str = "topic";
const PARTITION: &str = "partition";
const OFFSET: &str = "offset";
const ERROR: &str = "error";
/// Stands in the place of [`ERROR`] in a resent marker. Its value is the offset, on the dead letter topic, of the dead letter
/// that was sent again.
const SENT_AGAIN: &str = "sent-again";
/// The prefix until 2026.
const OLD_PREFIX: &str = "dlq-";
/// How many headers we add.
const ADDED_HEADERS: usize = 4;

/// The topic, partition and offset of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// A record on the dead letter topic, by its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A dead letter.
    DeadLetter {
        /// The record that it was.
        origin: Origin,
        /// Why that could not be decoded.
        error: String,
    },
    /// A marker: a dead letter was sent again.
    Resent {
        /// The offset of the dead letter on the dead letter topic.
        dead_letter: i64,
        /// The record that was sent.
        sent_to: Origin,
    },
    /// A record of another program.
    Foreign,
}

/// The headers of a dead letter: the original's, and ours after them.
pub fn add_headers(mut original: Headers, origin: &Origin, error: &str) -> Headers {
    let prefix = unused_prefix(&original);
    original.extend(added_headers(&prefix, origin, (ERROR, error.to_owned())));
    original
}

/// The headers of a resent marker: the dead letter with this offset on the dead letter topic was sent to `sent_to`.
pub fn resent_marker_headers(dead_letter: i64, sent_to: &Origin) -> Headers {
    added_headers(PREFIX, sent_to, (SENT_AGAIN, dead_letter.to_string())).into()
}

/// The original's headers: those of a dead letter without ours.
pub fn original_headers(mut headers: Headers) -> Headers {
    if ends_with_ours(&headers) {
        headers.truncate(headers.len() - ADDED_HEADERS);
    } else {
        let old = [TOPIC, PARTITION, OFFSET, ERROR, SENT_AGAIN].map(|name| format!("{OLD_PREFIX}{name}").into_bytes());
        headers.retain(|(name, _)| !old.contains(name));
    }
    headers
}

/// The kind of a record with these headers.
pub fn parse(headers: &Headers) -> RecordKind {
    let kind = if ends_with_ours(headers) {
        let ours = headers[headers.len() - ADDED_HEADERS..].iter();
        let values: Vec<Option<&str>> =
            ours.map(|(_, value)| value.as_deref().and_then(|value| std::str::from_utf8(value).ok())).collect();
        let is_marker = headers.last().is_some_and(|(name, _)| name.ends_with(SENT_AGAIN.as_bytes()));
        record_kind(
            values[..3].try_into().unwrap_or_default(),
            values[3].filter(|_| is_marker),
            values[3].filter(|_| !is_marker),
        )
    } else {
        let old = |name: &str| text(headers, &format!("{OLD_PREFIX}{name}"));
        let is_marker = headers.iter().any(|(name, _)| name == format!("{OLD_PREFIX}{SENT_AGAIN}").as_bytes());
        let error = old(ERROR).unwrap_or_default();
        record_kind([TOPIC, PARTITION, OFFSET].map(old), old(SENT_AGAIN), (!is_marker).then_some(error))
    };
    kind.unwrap_or(RecordKind::Foreign)
}

fn added_headers(prefix: &str, origin: &Origin, last: (&str, String)) -> [Header; ADDED_HEADERS] {
    let Origin { topic, partition, offset } = origin;
    let headers = [(TOPIC, topic.clone()), (PARTITION, partition.to_string()), (OFFSET, offset.to_string()), last];
    headers.map(|(name, value)| header(format!("{prefix}{name}"), value))
}

/// The first prefix that no header name begins with.
fn unused_prefix(headers: &Headers) -> String {
    let mut is_unused = true;
    let mut used_numbers = BTreeSet::new();
    for rest in headers.iter().filter_map(|(name, _)| name.strip_prefix(PREFIX.as_bytes())) {
        is_unused = false;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&rest[..digits]).ok().and_then(|digits| digits.parse::<u64>().ok());
        used_numbers.extend(number.filter(|_| rest.get(digits) == Some(&b'-')));
    }
    match (2..).find(|number| !used_numbers.contains(number)) {
        Some(number) if !is_unused => format!("{PREFIX}{number}-"),
        _ => PREFIX.to_owned(),
    }
}

/// Whether the last four headers are ours.
fn ends_with_ours(headers: &Headers) -> bool {
    let Some(prefix) = headers.len().checked_sub(ADDED_HEADERS).and_then(|first| {
        let name = std::str::from_utf8(&headers[first].0).ok()?;
        name.strip_suffix(TOPIC)
    }) else {
        return false;
    };
    let number = prefix.strip_prefix(PREFIX).map(|rest| rest.strip_suffix('-').unwrap_or(rest));
    let is_prefix = number.is_some_and(|number| {
        prefix == PREFIX || number.parse::<u64>().is_ok_and(|parsed| prefix == format!("{PREFIX}{parsed}-"))
    });
    let has_name =
        |from_end: usize, name: &str| headers[headers.len() - from_end].0 == format!("{prefix}{name}").as_bytes();
    is_prefix && has_name(3, PARTITION) && has_name(2, OFFSET) && (has_name(1, ERROR) || has_name(1, SENT_AGAIN))
}

/// None if a value is missing or cannot be parsed.
fn record_kind(origin: [Option<&str>; 3], sent_again: Option<&str>, error: Option<&str>) -> Option<RecordKind> {
    let [topic, partition, offset] = origin;
    let origin =
        Origin { topic: topic?.to_owned(), partition: partition?.parse().ok()?, offset: offset?.parse().ok()? };
    match (sent_again, error) {
        (Some(dead_letter), _) => Some(RecordKind::Resent { dead_letter: dead_letter.parse().ok()?, sent_to: origin }),
        (None, Some(error)) => Some(RecordKind::DeadLetter { origin, error: error.to_owned() }),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { topic: "patient".to_owned(), partition: 2, offset: 17 }
    }

    fn names(headers: &Headers) -> Vec<&str> {
        headers.iter().map(|(name, _)| std::str::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn a_dead_letter_keeps_all_original_headers_and_names_its_origin() {
        let own = vec![
            header("a", "1"),
            header("a", "2"),
            (b"n".to_vec(), None),
            header("dlq-error", "mine"),
            (b"\xff".to_vec(), Some(vec![0, 255])),
        ];
        let letter = add_headers(own.clone(), &origin(), "undecodable");
        assert_eq!(letter[..own.len()], own);
        assert_eq!(
            names(&letter[own.len()..].to_vec()),
            ["dead-letter-topic", "dead-letter-partition", "dead-letter-offset", "dead-letter-error"]
        );
        assert_eq!(parse(&letter), RecordKind::DeadLetter { origin: origin(), error: "undecodable".to_owned() });
        assert_eq!(original_headers(letter), own);
    }

    #[test]
    fn added_headers_never_have_the_name_of_an_original_header() {
        // A dead letter of a dead letter, several times, and original names with the next numbers.
        let mut own = vec![header("dead-letter-error", "mine"), header("dead-letter-5-x", "")];
        let mut prefixes = Vec::new();
        for depth in 0..5 {
            let error = format!("error {depth}");
            let letter = add_headers(own.clone(), &origin(), &error);
            let (original, added) = letter.split_at(own.len());
            assert!(original == own && added.iter().all(|(name, _)| own.iter().all(|(other, _)| name != other)));
            prefixes.push(String::from_utf8(added[3].0.clone()).unwrap());
            assert_eq!(parse(&letter), RecordKind::DeadLetter { origin: origin(), error });
            assert_eq!(original_headers(letter.clone()), own);
            own = letter;
        }
        assert_eq!(prefixes, [2, 3, 4, 6, 7].map(|number| format!("dead-letter-{number}-error")));
    }

    #[test]
    fn a_dead_letter_of_a_resent_marker_is_a_dead_letter() {
        let letter = add_headers(resent_marker_headers(5, &origin()), &origin(), "undecodable");
        assert!(matches!(parse(&letter), RecordKind::DeadLetter { .. }), "{letter:?}");
        assert_eq!(original_headers(letter), resent_marker_headers(5, &origin()));
    }

    #[test]
    fn dead_letters_and_markers_with_the_old_headers_are_parsed() {
        let place = [header("dlq-offset", "17"), header("dlq-partition", "2"), header("dlq-topic", "patient")];
        let old = |more: &[(&str, &str)]| -> Headers {
            let more = more.iter().map(|(name, value)| header(*name, *value));
            more.chain(place.clone()).collect()
        };
        let letter = old(&[("a", "1"), ("dlq-error", "undecodable")]);
        assert_eq!(parse(&letter), RecordKind::DeadLetter { origin: origin(), error: "undecodable".to_owned() });
        assert_eq!(original_headers(letter), [header("a", "1")]);
        assert_eq!(parse(&old(&[("dlq-sent-again", "5")])), RecordKind::Resent { dead_letter: 5, sent_to: origin() });
        assert_eq!(parse(&old(&[("dlq-sent-again", "five")])), RecordKind::Foreign);
    }

    #[test]
    fn markers_and_foreign_records_are_no_dead_letters() {
        assert_eq!(
            parse(&resent_marker_headers(5, &origin())),
            RecordKind::Resent { dead_letter: 5, sent_to: origin() }
        );
        assert_eq!(parse(&Headers::new()), RecordKind::Foreign);
        let mut broken = resent_marker_headers(5, &origin());
        broken[3].1 = Some(b"five".to_vec());
        assert_eq!(parse(&broken), RecordKind::Foreign);
        let mut elsewhere = resent_marker_headers(5, &origin());
        elsewhere.push(header("a", "1"));
        assert_eq!(parse(&elsewhere), RecordKind::Foreign, "our headers are the last");
    }
}
