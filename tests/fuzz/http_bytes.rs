//! Arbitrary bytes on a connection: every response is complete, and there are no more responses than requests.

use crate::{
    edge::{self, Memory},
    responses,
};

/// Sends the bytes and checks the responses.
pub fn check(bytes: &[u8]) {
    let responses = responses::read(&edge::exchange(&[bytes], true, Memory::Ample));
    // Each request has an empty line, and after bytes that are not a request there is at most one response.
    let requests = bytes.split(|byte| *byte == b'\n').filter(|line| line.is_empty() || *line == b"\r").count();
    assert!(responses.len() <= requests + 1, "{} responses: {responses:?}", responses.len());
}
