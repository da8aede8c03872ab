//! The OpenAPI document, and Swagger UI to read it with. Both are part of the binary and work offline.

use std::sync::{Arc, LazyLock};

use tide::{Response, StatusCode};
use utoipa_swagger_ui::Config;
use web::Problem;

use super::{Request, openapi};

static JSON: LazyLock<String> =
    LazyLock::new(|| openapi::document().to_json().expect("the document consists of text and numbers"));

/// A page of our own in place of Swagger UI's: it needs two files only, and "Try it out" is enabled.
const INDEX: &str = include_str!("swagger-ui.html");
/// Its script, in a file of its own because of [`POLICY`].
const START: (&str, &str) = ("start.js", include_str!("swagger-ui-start.js"));
/// What the page may do: run our two scripts, and ask the service. Swagger UI sets styles of elements, and has its icons in
/// its style sheet.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
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
        let mut response = web::text("text/html; charset=utf-8", INDEX);
        response.insert_header("content-security-policy", POLICY);
        return Ok(response);
    }
    if name == START.0 {
        return Ok(web::text("text/javascript; charset=utf-8", START.1));
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
