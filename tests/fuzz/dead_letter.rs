//! The headers of a record on the topic of dead letters: a letter, a mark or foreign, and written again they say the same.

use arbitrary::Arbitrary;
use codec::{
    dead_letter::{self, Content, ERROR, OFFSET, PARTITION, SENT_AGAIN, TOPIC, of_letter, of_mark, originals},
    headers::Headers,
};

/// The names of our headers.
const OURS: [&str; 5] = [TOPIC, PARTITION, OFFSET, ERROR, SENT_AGAIN];

/// The headers of a record.
#[derive(Arbitrary, Debug)]
pub struct Input {
    others: Headers,
    /// Ours, each in one of the forms that it may have.
    ours: [Option<Value>; OURS.len()],
}

#[derive(Arbitrary, Debug)]
enum Value {
    Bytes(Vec<u8>),
    Text(String),
    Number(i64),
}

/// Reads the headers.
pub fn check(input: Input) {
    let Input { mut others, ours } = input;
    others.retain(|name, _| !OURS.contains(&name.as_str()));
    let mut headers = others.clone();
    for (name, value) in OURS.into_iter().zip(ours) {
        let value = value.map(|value| match value {
            Value::Bytes(bytes) => bytes,
            Value::Text(text) => text.into_bytes(),
            Value::Number(number) => number.to_string().into_bytes(),
        });
        headers.extend(value.map(|value| (name.to_owned(), value)));
    }

    let content = dead_letter::read(&headers);
    assert_eq!(originals(headers), others);
    match &content {
        Content::Letter { origin, error } => {
            let letter = of_letter(others.clone(), origin, error);
            assert_eq!(dead_letter::read(&letter), content);
            assert_eq!(originals(letter), others);
        }
        Content::SentAgain { letter, now } => assert_eq!(dead_letter::read(&of_mark(*letter, now)), content),
        Content::Foreign => {}
    }
    assert_eq!(dead_letter::read(&others), Content::Foreign);
}
