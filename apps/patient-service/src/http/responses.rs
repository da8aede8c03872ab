//! Responses that several handlers have in the OpenAPI document.

use std::collections::BTreeMap;

use utoipa::{ToResponse, ToSchema};

use super::body;

/// An error: RFC 9457.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "describes what libs/web writes")]
#[schema(rename_all = "camelCase")]
pub(super) struct ProblemBody {
    /// Type of the problem; about:blank if the status says enough.
    #[schema(example = "urn:problem-type:invalid-patient")]
    r#type: String,
    #[schema(example = "Bad Request")]
    title: String,
    #[schema(example = 400)]
    status: u16,
    /// What is wrong, and what to do.
    detail: String,
    /// The original service's message if it has one, else the detail.
    #[schema(example = "Patient not found")]
    message: String,
    /// Path of the request.
    #[schema(example = "/patients")]
    instance: String,
    /// Messages by field or parameter.
    errors: Option<BTreeMap<String, String>>,
    /// Finds the request in the logs of all services.
    #[schema(example = "4bf92f3577b34da6a3ce929d0e0e4736")]
    trace_id: String,
}

/// Patients, or a page of them.
#[derive(ToSchema)]
#[schema(as = PatientListOrPage)]
#[expect(dead_code, reason = "describes two answers of one handler")]
#[serde(untagged)]
pub(super) enum ListOrPage<'a> {
    List(Vec<body::PatientBody<'a>>),
    Page(body::PageBody<'a>),
}

macro_rules! problems {
    ($($name:ident: $description:literal),* $(,)?) => {$(
        #[derive(ToResponse)]
        #[response(description = $description, content_type = "application/problem+json")]
        #[expect(dead_code, reason = "describes what libs/web writes")]
        pub(super) struct $name(ProblemBody);
    )*};
}

problems! {
    BadRequest: "The request is malformed or its data are invalid",
    Unauthorized: "With AUTH=jwt: the request has no valid token; WWW-Authenticate says why",
    Forbidden: "With AUTH=jwt: the token does not grant the scope, which WWW-Authenticate names",
    Misdirected: "With AUTH=off: the Host is none of the service's names",
    NotFound: "The patient does not exist",
    Conflict: "The request conflicts with the current state, such as an email that another patient has",
    PreconditionFailed: "The patient is not in the state that If-Match or If-None-Match requires",
    TooLarge: "The body is too large",
    UnsupportedMediaType: "The body is not application/json, or has a content coding",
    KeyReused: "The Idempotency-Key was used for another request",
    NotImplemented: "The billing service has no such method: an original one only opens accounts",
    Unavailable: "A dependency is unavailable or the service is overloaded; see Retry-After",
}
