//! The OpenAPI document, and Swagger UI to read it with. Both are part of the binary and work offline.

use std::sync::{Arc, LazyLock};

use tide::{Response, StatusCode};
use utoipa_swagger_ui::Config;
use web::Problem;

use super::{Request, openapi};

static JSON: LazyLock<String> =
    LazyLock::new(|| openapi::document().to_json().expect("the document consists of text and numbers"));

/// The page is ours, so that it needs two files only and starts with "Try it out".
const INDEX: &str = include_str!("swagger-ui.html");
/// The files of Swagger UI that the page needs.
const FILES: [&str; 2] = ["swagger-ui.css", "swagger-ui-bundle.js"];

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
    if name == "index.html" {
        return Ok(web::text("text/html; charset=utf-8", INDEX));
    }
    let known = FILES.contains(&name).then_some(name);
    // The configuration is for Swagger UI's own page, which is not served.
    let file = known.and_then(|name| utoipa_swagger_ui::serve(name, Arc::new(Config::default())).ok().flatten());
    let file = file.ok_or_else(|| Problem::not_found("Swagger UI has no such file."))?;
    let mut response = web::text(&format!("{}; charset=utf-8", file.content_type), file.bytes);
    if file.gzpipped {
        response.insert_header("content-encoding", "gzip");
    }
    Ok(response)
}
