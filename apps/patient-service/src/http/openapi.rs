//! The OpenAPI document, generated from the handlers.

use utoipa::{
    Modify, OpenApi,
    openapi::{RefOr, Schema, schema::SchemaType},
};

use super::{
    billing, body, patients,
    responses::{
        BadRequest, Conflict, KeyReused, NotFound, NotImplemented, PreconditionFailed, ProblemBody, TooLarge,
        Unavailable, UnsupportedMediaType,
    },
};

/// The document.
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
        (name = "billing", description = "Accounts and ledgers, kept by the billing service")
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

/// utoipa makes an `Option` parameter nullable; an optional parameter is not nullable.
struct AbsentIsNotNull;

impl Modify for AbsentIsNotNull {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let operations = document.paths.paths.values_mut().flat_map(|path| {
            [&mut path.get, &mut path.put, &mut path.post, &mut path.delete].into_iter().filter_map(Option::as_mut)
        });
        for parameter in operations.flat_map(|operation| operation.parameters.iter_mut().flatten()) {
            if let RefOr::T(parameter) = parameter
                && let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema
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
