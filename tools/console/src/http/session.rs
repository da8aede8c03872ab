//! The login of a secure system.

use serde_json::json;
use tide::{Response, StatusCode};
use web::{Limits, Problem, read_body};

use super::{Request, patients::proxy_response, patients::unreachable};
use crate::app::App;

pub(super) async fn page(request: Request) -> Result<Response, Problem> {
    request.state().assets().response("login.html", &request)
}

/// Logs a person in: the body goes to auth-service as it is.
pub(super) async fn log_in(mut request: Request) -> Result<Response, Problem> {
    let body = read_body(&mut request, &Limits::default()).await?;
    let identity = request.state().identity().ok_or_else(nobody_logs_in)?;
    match identity.log_in(body).await.map_err(|error| unreachable(&error))? {
        Ok(cookie) => Ok(with_cookie(StatusCode::Ok, &cookie)),
        Err(answer) => Ok(proxy_response(&answer)),
    }
}

pub(super) async fn log_out(request: Request) -> Result<Response, Problem> {
    let app = App::of(&request);
    let identity = app.identity().ok_or_else(nobody_logs_in)?;
    Ok(with_cookie(StatusCode::Ok, &identity.log_out(&request)))
}

fn nobody_logs_in() -> Problem {
    Problem::not_found("Nobody logs in: the system has no identities.")
}

fn with_cookie(status: StatusCode, cookie: &str) -> Response {
    let mut response = web::json(status, &json!({}));
    response.insert_header("set-cookie", cookie);
    response.insert_header("cache-control", "no-store");
    response
}
