//! Any bytes on a connection: whole answers or none, and never more than there can be requests.

use crate::{answers, edge};

/// Sends the bytes and looks at the answers.
pub fn check(bytes: &[u8]) {
    let answers = answers::read(&edge::talk(&[bytes], true));
    // Each request has an empty line of its own, and after what is no request there is one answer at most.
    let requests = bytes.split(|byte| *byte == b'\n').filter(|line| line.is_empty() || *line == b"\r").count();
    assert!(answers.len() <= requests + 1, "{} answers: {answers:?}", answers.len());
}
