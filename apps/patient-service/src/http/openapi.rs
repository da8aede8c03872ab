//! The OpenAPI document, generated from the handlers.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        Ref, RefOr, Schema,
        schema::SchemaType,
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};

use super::{
    BILLING_READ, BILLING_WRITE, PATIENTS_ERASE, PATIENTS_READ, PATIENTS_WRITE, billing, body, patients,
    responses::{
        BadRequest, Conflict, Forbidden, KeyReused, Misdirected, NotFound, NotImplemented, PreconditionFailed,
        ProblemBody, TooLarge, Unauthorized, Unavailable, UnsupportedMediaType,
    },
};

/// The document.
#[derive(OpenApi)]
#[openapi(
    modifiers(&OptionalIsNotNullable, &AccessControl),
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
        responses(BadRequest, Unauthorized, Forbidden, Misdirected, NotFound, Conflict, PreconditionFailed, TooLarge, UnsupportedMediaType, KeyReused, NotImplemented, Unavailable)
    )
)]
struct Document;

/// Adds to every operation the token with its scope, and the responses 401, 403 and 421 of libs/web.
struct AccessControl;

impl Modify for AccessControl {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        const SCHEME: &str = "token";
        let scheme = Http::builder().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
        let about = "With AUTH=jwt: a token of the issuer, for the audience of this service";
        let scheme = SecurityScheme::Http(scheme.description(Some(about)).build());
        document.components.get_or_insert_default().add_security_scheme(SCHEME, scheme);
        for (path, item) in &mut document.paths.paths {
            let is_billing = path.contains("/billing");
            let operations = [
                (&mut item.get, if is_billing { BILLING_READ } else { PATIENTS_READ }),
                (&mut item.post, if is_billing { BILLING_WRITE } else { PATIENTS_WRITE }),
                (&mut item.put, PATIENTS_WRITE),
                (&mut item.delete, PATIENTS_ERASE),
            ];
            for (operation, scope) in operations {
                let Some(operation) = operation else { continue };
                // The empty one: with AUTH=off nobody needs a token.
                let needs = SecurityRequirement::new(SCHEME, [scope.to_string()]);
                operation.security = Some(vec![SecurityRequirement::default(), needs]);
                for (status, name) in [("401", "Unauthorized"), ("403", "Forbidden"), ("421", "Misdirected")] {
                    let response = RefOr::Ref(Ref::from_response_name(name));
                    operation.responses.responses.insert(status.to_owned(), response);
                }
            }
        }
    }
}

/// utoipa makes an `Option` parameter nullable; an optional parameter is not nullable.
struct OptionalIsNotNullable;

impl Modify for OptionalIsNotNullable {
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
