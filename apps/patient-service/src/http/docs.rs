//! The OpenAPI document, and Swagger UI to read it with. Both are part of the binary and work offline.

use std::sync::{Arc, LazyLock};

use tide::{Response, StatusCode};
use utoipa_swagger_ui::Config;
use web::Problem;

use super::{Request, openapi};

/// Where the document is.
const DOCUMENT: &str = "/v3/api-docs";

static JSON: LazyLock<String> =
    LazyLock::new(|| openapi::document().to_json().expect("the document consists of text and numbers"));
static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from(DOCUMENT)));

pub(super) async fn document(_: Request) -> Result<Response, Problem> {
    Ok(web::text("application/json", JSON.as_str()))
}

pub(super) async fn redirect(_: Request) -> Result<Response, Problem> {
    let mut response = Response::new(StatusCode::PermanentRedirect);
    response.insert_header("location", "/swagger-ui/index.html");
    Ok(response)
}

pub(super) async fn file(request: Request) -> Result<Response, Problem> {
    let name = request.param("file").unwrap_or_default();
    match utoipa_swagger_ui::serve(name, CONFIG.clone()) {
        Ok(Some(file)) => Ok(web::text(&file.content_type, file.bytes.into_owned())),
        Ok(None) => Err(Problem::not_found("Swagger UI has no such file.")),
        Err(error) => {
            tracing::error!(error, "Swagger UI's configuration cannot be written");
            Err(Problem::internal())
        }
    }
}
