use serde::Serialize;
use tide::{Response, StatusCode};

/// A response with a JSON body.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let bytes = serde_json::to_vec(body).expect("our response types have string keys and no failing parts");
    let mut response = Response::new(status);
    response.set_body(bytes);
    response.insert_header("content-type", "application/json");
    response
}

/// 200 with text of this media type.
pub fn text(content_type: &str, body: impl Into<Vec<u8>>) -> Response {
    let mut response = Response::new(StatusCode::Ok);
    response.set_body(body.into());
    response.insert_header("content-type", content_type);
    response
}

/// 204 No Content.
pub fn no_content() -> Response {
    Response::new(StatusCode::NoContent)
}
