use std::time::Duration;

use serde::{Serialize, Serializer};
use telemetry::TraceContext;
use tide::{Response, StatusCode};

/// An error response: RFC 9457 `application/problem+json`.
///
/// ```
/// use tide::StatusCode;
/// use web::Problem;
///
/// let problem = Problem::new(StatusCode::BadRequest, "The patient is not valid.").field("name", "Name is required");
/// assert_eq!(problem.status(), StatusCode::BadRequest);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    kind: Option<&'static str>,
    message: Option<&'static str>,
    detail: String,
    errors: Vec<(String, String)>,
    headers: Vec<(&'static str, String)>,
}

impl Problem {
    /// The media type of the response.
    pub const CONTENT_TYPE: &'static str = "application/problem+json";

    /// A problem with this status. `detail` is for people: what is wrong and what to do, without internals.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, kind: None, message: None, detail: detail.into(), errors: Vec::new(), headers: Vec::new() }
    }

    /// 404: nothing exists at this path.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NotFound, detail)
    }

    /// 400: the request is malformed.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BadRequest, detail)
    }

    /// 500: a bug or fault of the service, whose cause is in the log and not in the response.
    pub fn internal() -> Self {
        Self::new(StatusCode::InternalServerError, "The service failed to answer; the trace id leads to the cause.")
    }

    /// 503: a dependency is unavailable or the service overloaded; the client may retry after `retry_after`.
    pub fn unavailable(detail: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(StatusCode::ServiceUnavailable, detail).retry_after(retry_after)
    }

    /// Says after which time the client may retry, in whole seconds: rounded up, so that it is not too early, and at least one.
    #[must_use]
    pub fn retry_after(self, time: Duration) -> Self {
        let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        self.header("retry-after", seconds.max(1).to_string())
    }

    /// Sets the kind of the problem for programs: the last part of `type`.
    #[must_use]
    pub fn kind(self, kind: &'static str) -> Self {
        Self { kind: Some(kind), ..self }
    }

    /// Sets the member `message`, for clients of the original services that compare it. By default it is the detail.
    #[must_use]
    pub fn message(self, message: &'static str) -> Self {
        Self { message: Some(message), ..self }
    }

    /// Adds what is wrong with one field of the request.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, message: impl Into<String>) -> Self {
        self.errors.push((name.into(), message.into()));
        self
    }

    /// Adds a header to the response.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The response to the request for `path`.
    pub(crate) fn into_response(self, path: &str, trace: TraceContext) -> Response {
        let mut response = Response::new(self.status);
        response.set_body(self.body(path, trace));
        response.insert_header("content-type", Self::CONTENT_TYPE);
        for (name, value) in &self.headers {
            response.insert_header(*name, value);
        }
        response
    }

    /// The headers that `into_response` adds besides the media type.
    pub(crate) fn headers(&self) -> &[(&'static str, String)] {
        &self.headers
    }

    /// The body of the response.
    pub(crate) fn body(&self, path: &str, trace: TraceContext) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            r#type: String,
            title: &'static str,
            status: u16,
            detail: &'a str,
            message: &'a str,
            instance: &'a str,
            #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "as_object")]
            errors: &'a [(String, String)],
            trace_id: String,
        }
        fn as_object<S: Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(pairs.iter().map(|(name, message)| (name, message)))
        }
        let body = Body {
            r#type: self.kind.map_or_else(|| "about:blank".to_owned(), |kind| format!("urn:problem-type:{kind}")),
            title: self.status.canonical_reason(),
            status: self.status.into(),
            detail: &self.detail,
            message: self.message.unwrap_or(&self.detail),
            instance: path,
            errors: &self.errors,
            trace_id: trace.trace_id(),
        };
        serde_json::to_vec(&body).expect("a problem consists of strings and a number")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn body_of(problem: Problem) -> (Response, Value) {
        let mut response = problem.into_response("/patients", TraceContext::root());
        let bytes = smol::block_on(response.take_body().into_bytes()).unwrap();
        (response, serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn a_problem_has_every_member_of_the_rfc_and_ours() {
        let problem = Problem::bad_request("No.").kind("invalid-patient").field("name", "Name is required");
        let (response, body) = body_of(problem);
        assert_eq!(response.header("content-type").unwrap().as_str(), "application/problem+json");
        assert_eq!(body["type"], "urn:problem-type:invalid-patient");
        assert_eq!(body["title"], "Bad Request");
        assert_eq!(body["status"], 400);
        assert_eq!((&body["detail"], &body["message"]), (&Value::from("No."), &Value::from("No.")));
        assert_eq!(body["instance"], "/patients");
        assert_eq!(body["errors"]["name"], "Name is required");
        assert_eq!(body["traceId"].as_str().map(str::len), Some(32));
    }

    #[test]
    fn a_message_of_its_own_leaves_the_detail_as_it_is() {
        let (_, body) = body_of(Problem::not_found("There is no patient with this id.").message("Patient not found"));
        assert_eq!(body["message"], "Patient not found");
        assert_eq!(body["detail"], "There is no patient with this id.");
    }

    #[test]
    fn unavailable_has_a_retry_after_that_is_not_too_early() {
        for (milliseconds, seconds) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (29_900, "30")] {
            let (response, body) = body_of(Problem::unavailable("Later.", Duration::from_millis(milliseconds)));
            assert_eq!(response.header("retry-after").unwrap().as_str(), seconds);
            assert_eq!(body["type"], "about:blank");
            assert!(body.get("errors").is_none());
        }
    }
}
