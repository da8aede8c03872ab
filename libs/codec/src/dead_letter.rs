//! Dead letters: records that are no events, on a topic of their own, with the original bytes, key and headers. Headers
//! of ours say where a letter comes from and why it is there, and which letters were sent again.
//!
//! The original's headers come first, as they were: in order, repeated and null ones too. Ours are the last four:
//! `dead-letter-topic`, `dead-letter-partition`, `dead-letter-offset`, and `dead-letter-error` (of a mark
//! `dead-letter-sent-again`). If a header of the original begins with `dead-letter-`, as that of a letter which somebody has
//! sent to a topic of events, ours begin with `dead-letter-2-`, or the first higher number with which none of the original's
//! begins: no name of ours is ever one of the original's, and which headers are ours is known by their place.
//!
//! Until 2026 ours had the names `dlq-topic` and so on, in any place, and replaced the original's of the same name. Such
//! letters are still read.

use std::collections::BTreeSet;

use crate::headers::{Headers, header, text};

/// What the names of our headers begin with; if it is not taken, nothing but their last part follows.
const PREFIX: &str = "dead-letter-";
/// The last parts of the names.
const TOPIC: &str = "topic";
const PARTITION: &str = "partition";
const OFFSET: &str = "offset";
/// The reason.
const ERROR: &str = "error";
/// Makes a record a mark instead of a letter: the offset, on the topic of dead letters, of the letter that was sent again.
const SENT_AGAIN: &str = "sent-again";
/// What the names began with before.
const OLD_PREFIX: &str = "dlq-";

/// Where a letter comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// What a record on the topic of dead letters is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A dead letter.
    Letter {
        /// Where it comes from.
        origin: Origin,
        /// Why it is dead.
        error: String,
    },
    /// Says that the letter with this offset was sent again.
    SentAgain {
        /// The offset, on the topic of dead letters.
        letter: i64,
        /// Where the letter is now.
        now: Origin,
    },
    /// Nothing of ours.
    Foreign,
}

/// The headers of a dead letter: the original's own, and after them ours.
pub fn of_letter(mut headers: Headers, origin: &Origin, error: &str) -> Headers {
    let prefix = free_prefix(&headers);
    headers.extend(ours(&prefix, origin, (ERROR, error.to_owned())));
    headers
}

/// The headers of the mark that says that a letter was sent again, and where it is now.
pub fn of_mark(letter: i64, now: &Origin) -> Headers {
    ours(PREFIX, now, (SENT_AGAIN, letter.to_string())).into()
}

/// The headers that a letter had before it became one.
pub fn originals(mut headers: Headers) -> Headers {
    if is_ours(&headers) {
        headers.truncate(headers.len() - OUR_NAMES);
    } else {
        let old = [TOPIC, PARTITION, OFFSET, ERROR, SENT_AGAIN].map(|name| format!("{OLD_PREFIX}{name}").into_bytes());
        headers.retain(|(name, _)| !old.contains(name));
    }
    headers
}

/// What a record with these headers is.
pub fn read(headers: &Headers) -> Content {
    let content = if is_ours(headers) {
        let last = headers[headers.len() - OUR_NAMES..].iter();
        let values: Vec<Option<&str>> =
            last.map(|(_, value)| value.as_deref().and_then(|value| std::str::from_utf8(value).ok())).collect();
        let is_mark = ends_with(headers, SENT_AGAIN);
        content(
            values[..3].try_into().unwrap_or_default(),
            values[3].filter(|_| is_mark),
            values[3].filter(|_| !is_mark),
        )
    } else {
        let old = |name: &str| text(headers, &format!("{OLD_PREFIX}{name}"));
        let has_mark = headers.iter().any(|(name, _)| name == format!("{OLD_PREFIX}{SENT_AGAIN}").as_bytes());
        let error = old(ERROR).unwrap_or_default();
        content([TOPIC, PARTITION, OFFSET].map(old), old(SENT_AGAIN), (!has_mark).then_some(error))
    };
    content.unwrap_or(Content::Foreign)
}

/// How many headers are ours.
const OUR_NAMES: usize = 4;

fn ours(prefix: &str, origin: &Origin, last: (&str, String)) -> [(Vec<u8>, Option<Vec<u8>>); OUR_NAMES] {
    let Origin { topic, partition, offset } = origin;
    let named = [(TOPIC, topic.clone()), (PARTITION, partition.to_string()), (OFFSET, offset.to_string()), last];
    named.map(|(name, text)| header(format!("{prefix}{name}"), text))
}

/// The first prefix with which no name begins.
fn free_prefix(headers: &Headers) -> String {
    let mut is_free = true;
    let mut taken = BTreeSet::new();
    for rest in headers.iter().filter_map(|(name, _)| name.strip_prefix(PREFIX.as_bytes())) {
        is_free = false;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&rest[..digits]).ok().and_then(|digits| digits.parse::<u64>().ok());
        taken.extend(number.filter(|_| rest.get(digits) == Some(&b'-')));
    }
    match (2..).find(|number| !taken.contains(number)) {
        Some(number) if !is_free => format!("{PREFIX}{number}-"),
        _ => PREFIX.to_owned(),
    }
}

/// Whether the last headers are ours.
fn is_ours(headers: &Headers) -> bool {
    let Some(prefix) = headers.len().checked_sub(OUR_NAMES).and_then(|first| {
        let name = std::str::from_utf8(&headers[first].0).ok()?;
        name.strip_suffix(TOPIC)
    }) else {
        return false;
    };
    let number = prefix.strip_prefix(PREFIX).map(|rest| rest.strip_suffix('-').unwrap_or(rest));
    let is_prefix = number.is_some_and(|number| {
        prefix == PREFIX || number.parse::<u64>().is_ok_and(|parsed| prefix == format!("{PREFIX}{parsed}-"))
    });
    let is = |number: usize, name: &str| headers[headers.len() - number].0 == format!("{prefix}{name}").as_bytes();
    is_prefix && is(3, PARTITION) && is(2, OFFSET) && (is(1, ERROR) || is(1, SENT_AGAIN))
}

fn ends_with(headers: &Headers, name: &str) -> bool {
    headers.last().is_some_and(|(last, _)| last.ends_with(name.as_bytes()))
}

/// None if something that belongs to it is missing or cannot be read.
fn content(place: [Option<&str>; 3], sent_again: Option<&str>, error: Option<&str>) -> Option<Content> {
    let [topic, partition, offset] = place;
    let origin =
        Origin { topic: topic?.to_owned(), partition: partition?.parse().ok()?, offset: offset?.parse().ok()? };
    match (sent_again, error) {
        (Some(letter), _) => Some(Content::SentAgain { letter: letter.parse().ok()?, now: origin }),
        (None, Some(error)) => Some(Content::Letter { origin, error: error.to_owned() }),
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
    fn a_letter_keeps_its_headers_in_order_repeated_and_null_and_says_where_it_comes_from() {
        let own = vec![
            header("a", "1"),
            header("a", "2"),
            (b"n".to_vec(), None),
            header("dlq-error", "mine"),
            (b"\xff".to_vec(), Some(vec![0, 255])),
        ];
        let letter = of_letter(own.clone(), &origin(), "no event");
        assert_eq!(letter[..own.len()], own);
        assert_eq!(
            names(&letter[own.len()..].to_vec()),
            ["dead-letter-topic", "dead-letter-partition", "dead-letter-offset", "dead-letter-error"]
        );
        assert_eq!(read(&letter), Content::Letter { origin: origin(), error: "no event".to_owned() });
        assert_eq!(originals(letter), own);
    }

    #[test]
    fn no_name_of_ours_is_one_of_the_originals() {
        // A letter of a letter of a letter, and names that look like the next ones.
        let mut own = vec![header("dead-letter-error", "mine"), header("dead-letter-5-x", "")];
        let mut prefixes = Vec::new();
        for depth in 0..5 {
            let error = format!("error {depth}");
            let letter = of_letter(own.clone(), &origin(), &error);
            let (theirs, ours) = letter.split_at(own.len());
            assert!(theirs == own && ours.iter().all(|(name, _)| own.iter().all(|(other, _)| name != other)));
            prefixes.push(String::from_utf8(ours[3].0.clone()).unwrap());
            assert_eq!(read(&letter), Content::Letter { origin: origin(), error });
            assert_eq!(originals(letter.clone()), own);
            own = letter;
        }
        assert_eq!(prefixes, [2, 3, 4, 6, 7].map(|number| format!("dead-letter-{number}-error")));
    }

    #[test]
    fn an_original_that_looks_like_a_mark_is_a_letter_all_the_same() {
        let letter = of_letter(of_mark(5, &origin()), &origin(), "no event");
        assert!(matches!(read(&letter), Content::Letter { .. }), "{letter:?}");
        assert_eq!(originals(letter), of_mark(5, &origin()));
    }

    #[test]
    fn letters_and_marks_of_before_are_read() {
        let place = [header("dlq-offset", "17"), header("dlq-partition", "2"), header("dlq-topic", "patient")];
        let old = |more: &[(&str, &str)]| -> Headers {
            let more = more.iter().map(|(name, value)| header(*name, *value));
            more.chain(place.clone()).collect()
        };
        let letter = old(&[("a", "1"), ("dlq-error", "no event")]);
        assert_eq!(read(&letter), Content::Letter { origin: origin(), error: "no event".to_owned() });
        assert_eq!(originals(letter), [header("a", "1")]);
        assert_eq!(read(&old(&[("dlq-sent-again", "5")])), Content::SentAgain { letter: 5, now: origin() });
        assert_eq!(read(&old(&[("dlq-sent-again", "five")])), Content::Foreign);
    }

    #[test]
    fn marks_and_strangers_are_no_letters() {
        assert_eq!(read(&of_mark(5, &origin())), Content::SentAgain { letter: 5, now: origin() });
        assert_eq!(read(&Headers::new()), Content::Foreign);
        let mut broken = of_mark(5, &origin());
        broken[3].1 = Some(b"five".to_vec());
        assert_eq!(read(&broken), Content::Foreign);
        let mut elsewhere = of_mark(5, &origin());
        elsewhere.push(header("a", "1"));
        assert_eq!(read(&elsewhere), Content::Foreign, "ours are the last");
    }
}
