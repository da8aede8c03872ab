//! The answers that the OpenAPI document describes and that handlers share.

use std::collections::BTreeMap;

use utoipa::{ToResponse, ToSchema};

use super::body;

/// An error answer: RFC 9457.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "describes what libs/web writes")]
#[schema(rename_all = "camelCase")]
pub(super) struct ProblemBody {
    /// Names the kind of the problem; about:blank where the status says it all.
    #[schema(example = "urn:problem-type:invalid-patient")]
    r#type: String,
    #[schema(example = "Bad Request")]
    title: String,
    #[schema(example = 400)]
    status: u16,
    /// What is wrong and what to do.
    detail: String,
    /// The words of the original service where it has some, else the detail.
    #[schema(example = "Patient not found")]
    message: String,
    /// Path of the request.
    #[schema(example = "/patients")]
    instance: String,
    /// What is wrong with each field or parameter, by its name.
    errors: Option<BTreeMap<String, String>>,
    /// Leads to the request in the logs of all services.
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
    BadRequest: "The request is malformed, or its data are not valid",
    NotFound: "There is no such patient",
    Conflict: "It contradicts what is stored, such as an email that another patient has",
    PreconditionFailed: "The patient is not in the state that If-Match or If-None-Match requires",
    TooLarge: "The body is too large",
    UnsupportedMediaType: "The body is not application/json, or it is in a content coding",
    KeyReused: "The Idempotency-Key was used for another request",
    NotImplemented: "The billing service has no such call; an original's opens accounts and does nothing else",
    Unavailable: "Something that the service needs is away; Retry-After says when to come back",
}
