//! Answers, and what the user reads when they are not as expected.

use serde_json::Value as Json;
use testbed::http::Answer;

use crate::{Failure, Outcome};

/// The body of an answer that has to have this status.
pub(crate) fn expect(answer: &Answer, status: u16) -> Outcome<Json> {
    if answer.status == status { Ok(answer.json()) } else { Err(unexpected(answer)) }
}

pub(crate) fn unexpected(answer: &Answer) -> Failure {
    Failure(format!("The answer was {}: {}", answer.status, answer.text()))
}
