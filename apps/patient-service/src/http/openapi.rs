//! The OpenAPI document, made from the handlers.

use std::collections::BTreeMap;

use utoipa::{
    Modify, OpenApi, ToResponse, ToSchema,
    openapi::{RefOr, Schema, schema::SchemaType},
};

use super::{billing, body, patients};

/// The whole document.
#[derive(OpenApi)]
#[openapi(
    modifiers(&AbsentIsNotNull),
    info(
        title = "Patient service",
        description = "A registry of patients, with their billing accounts.",
        license(name = "MIT OR Apache-2.0")
    ),
    servers((url = "/")),
    tags(
        (name = "patients", description = "The registry"),
        (name = "billing", description = "What patients owe, kept by the billing service")
    ),
    paths(
        patients::create, patients::list, patients::read, patients::update, patients::delete,
        billing::account, billing::record, billing::list
    ),
    components(
        schemas(body::PatientBody, body::PageBody, ProblemBody),
        responses(BadRequest, NotFound, Conflict, PreconditionFailed, TooLarge, UnsupportedMediaType, KeyReused, NotImplemented, Unavailable)
    )
)]
struct Document;

/// A parameter that may be left out is not one that may be null, which is what utoipa makes of `Option`.
struct AbsentIsNotNull;

impl Modify for AbsentIsNotNull {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let operations = document.paths.paths.values_mut().flat_map(|path| {
            [&mut path.get, &mut path.put, &mut path.post, &mut path.delete].into_iter().filter_map(Option::as_mut)
        });
        for parameter in operations.flat_map(|operation| operation.parameters.iter_mut().flatten()) {
            if let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema
                && let SchemaType::Array(types) = &schema.schema_type
                && let Some(first) = types.first()
            {
                schema.schema_type = SchemaType::Type(first.clone());
            }
        }
    }
}

/// The OpenAPI document of the service.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

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
