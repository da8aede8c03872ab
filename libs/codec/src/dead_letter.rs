//! Dead letters: records that are no events, on a topic of their own, with the original bytes, key and headers. Headers
//! of ours say where a letter comes from and why it is there, and which letters were sent again.

use crate::headers::{Headers, text};

/// The header with the reason.
pub const ERROR: &str = "dlq-error";
/// The headers with the place.
pub const TOPIC: &str = "dlq-topic";
/// See [`TOPIC`].
pub const PARTITION: &str = "dlq-partition";
/// See [`TOPIC`].
pub const OFFSET: &str = "dlq-offset";
/// The header that makes a record a mark instead of a letter: the offset, on the topic of dead letters, of the letter
/// that was sent again.
pub const SENT_AGAIN: &str = "dlq-sent-again";

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

/// The headers of a dead letter: the original's own and ours.
pub fn of_letter(mut headers: Headers, origin: &Origin, error: &str) -> Headers {
    headers.extend(place(origin));
    headers.insert(ERROR.to_owned(), error.as_bytes().to_vec());
    headers
}

/// The headers of the mark that says that a letter was sent again, and where it is now.
pub fn of_mark(letter: i64, now: &Origin) -> Headers {
    let mut headers = Headers::from(place(now));
    headers.insert(SENT_AGAIN.to_owned(), letter.to_string().into_bytes());
    headers
}

/// The headers that a letter had before it became one.
pub fn originals(mut headers: Headers) -> Headers {
    headers.retain(|name, _| ![ERROR, TOPIC, PARTITION, OFFSET, SENT_AGAIN].contains(&name.as_str()));
    headers
}

/// What a record with these headers is.
pub fn read(headers: &Headers) -> Content {
    let Some(origin) = origin(headers) else { return Content::Foreign };
    match text(headers, SENT_AGAIN).map(str::parse) {
        Some(Ok(letter)) => Content::SentAgain { letter, now: origin },
        Some(Err(_)) => Content::Foreign,
        None => Content::Letter { origin, error: text(headers, ERROR).unwrap_or_default().to_owned() },
    }
}

fn place(origin: &Origin) -> [(String, Vec<u8>); 3] {
    let Origin { topic, partition, offset } = origin;
    [(TOPIC, topic.clone()), (PARTITION, partition.to_string()), (OFFSET, offset.to_string())]
        .map(|(name, text)| (name.to_owned(), text.into_bytes()))
}

fn origin(headers: &Headers) -> Option<Origin> {
    Some(Origin {
        topic: text(headers, TOPIC)?.to_owned(),
        partition: text(headers, PARTITION)?.parse().ok()?,
        offset: text(headers, OFFSET)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { topic: "patient".to_owned(), partition: 2, offset: 17 }
    }

    #[test]
    fn a_letter_keeps_its_headers_and_says_where_it_comes_from() {
        let own =
            Headers::from([("traceparent".to_owned(), b"00-1-2-01".to_vec()), ("bytes".to_owned(), vec![0, 255])]);
        let letter = of_letter(own.clone(), &origin(), "no event");
        assert_eq!(read(&letter), Content::Letter { origin: origin(), error: "no event".to_owned() });
        assert_eq!(originals(letter), own);
    }

    #[test]
    fn marks_and_strangers_are_no_letters() {
        assert_eq!(read(&of_mark(5, &origin())), Content::SentAgain { letter: 5, now: origin() });
        assert_eq!(read(&Headers::new()), Content::Foreign);
        let mut broken = of_mark(5, &origin());
        broken.insert(SENT_AGAIN.to_owned(), b"five".to_vec());
        assert_eq!(read(&broken), Content::Foreign);
    }
}
