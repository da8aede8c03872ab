//! What programs send: OTLP over HTTP, in protobuf. What comes is stored and passed on to the user's own collector.

use tide::{Response, StatusCode};
use web::{Limits, Problem, read_body};

use super::Request;
use crate::{app::App, forward::Message, guard::only, otlp};

/// Bytes of a message at most.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
const PROTOBUF: &str = "application/x-protobuf";
/// Headers of one connection, which mean nothing on the next.
const OF_THE_CONNECTION: [&str; 7] =
    ["connection", "content-length", "expect", "host", "keep-alive", "te", "transfer-encoding"];

pub(super) async fn traces(mut request: Request) -> Result<Response, Problem> {
    let body = receive(&mut request).await?;
    let spans = otlp::spans(&body).map_err(|_| malformed())?;
    request.state().store().add_spans(spans);
    accept(&request, body)
}

pub(super) async fn logs(mut request: Request) -> Result<Response, Problem> {
    let body = receive(&mut request).await?;
    let lines = otlp::lines(&body).map_err(|_| malformed())?;
    request.state().store().add_lines(lines);
    accept(&request, body)
}

/// Metrics are read where they are shown, at each service; these are for the user's collector alone.
pub(super) async fn metrics(mut request: Request) -> Result<Response, Problem> {
    let body = receive(&mut request).await?;
    accept(&request, body)
}

async fn receive(request: &mut Request) -> Result<Vec<u8>, Problem> {
    let media_type = only(request, "content-type").and_then(|value| value.split(';').next()).map(str::trim);
    if !media_type.is_some_and(|value| value.eq_ignore_ascii_case(PROTOBUF)) {
        let problem = Problem::new(StatusCode::UnsupportedMediaType, "The body must be application/x-protobuf.");
        return Err(problem.header("accept", PROTOBUF));
    }
    read_body(request, &Limits { body: MAX_MESSAGE, ..Limits::default() }).await
}

fn malformed() -> Problem {
    Problem::bad_request("The body is no message of OTLP.").kind("malformed-body")
}

fn accept(request: &tide::Request<App>, body: Vec<u8>) -> Result<Response, Problem> {
    if let Some(forwarder) = request.state().forwarder() {
        let of_message = |name: &str| !OF_THE_CONNECTION.contains(&name);
        let headers = request.iter().filter(|(name, _)| of_message(name.as_str())).flat_map(|(name, values)| {
            values.iter().map(|value| (name.as_str().to_owned(), value.as_str().to_owned())).collect::<Vec<_>>()
        });
        let path = request.url().path().to_owned();
        forwarder.offer(Message { path, headers: headers.collect(), body: body.into() });
    }
    // An answer without content says that all of it was taken.
    let mut response = Response::new(StatusCode::Ok);
    response.insert_header("content-type", PROTOBUF);
    Ok(response)
}
