//! The OpenAPI document, and Swagger UI to read it with. Both are part of the binary and work offline.

use std::sync::LazyLock;

use tide::{Response, StatusCode};
use web::Problem;

use super::{Request, openapi};

static JSON: LazyLock<String> =
    LazyLock::new(|| openapi::document().to_json().expect("the document consists of text and numbers"));

/// A file of Swagger UI.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    gzipped: bool,
    bytes: &'static [u8],
}

/// Compressed they are a quarter; every browser reads them so.
const ASSETS: [Asset; 3] = [
    Asset {
        name: "index.html",
        content_type: "text/html; charset=utf-8",
        gzipped: false,
        bytes: include_bytes!("../../swagger-ui/index.html"),
    },
    Asset {
        name: "swagger-ui.css",
        content_type: "text/css; charset=utf-8",
        gzipped: true,
        bytes: include_bytes!("../../swagger-ui/swagger-ui.css.gz"),
    },
    Asset {
        name: "swagger-ui-bundle.js",
        content_type: "text/javascript; charset=utf-8",
        gzipped: true,
        bytes: include_bytes!("../../swagger-ui/swagger-ui-bundle.js.gz"),
    },
];

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
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        return Err(Problem::not_found("Swagger UI has no such file."));
    };
    let mut response = web::text(asset.content_type, asset.bytes);
    if asset.gzipped {
        response.insert_header("content-encoding", "gzip");
    }
    Ok(response)
}
