//! The OTLP endpoints: protobuf over HTTP. What arrives is stored and forwarded to the user's own collector.

use tide::{Response, StatusCode};
use web::{Limits, Problem, read_body};

use super::Request;
use crate::{app::App, forward::Message, guard::single_header, otlp};

/// Largest message, in bytes.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
const PROTOBUF: &str = "application/x-protobuf";
/// Hop-by-hop headers, which are not forwarded.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "content-length", "expect", "host", "keep-alive", "te", "transfer-encoding"];

pub(super) async fn traces(mut request: Request) -> Result<Response, Problem> {
    let body = receive(&mut request).await?;
    let spans = otlp::spans(&body).map_err(problem_of_error)?;
    request.state().store().add_spans(spans);
    accept(&request, body)
}

pub(super) async fn logs(mut request: Request) -> Result<Response, Problem> {
    let body = receive(&mut request).await?;
    let lines = otlp::lines(&body).map_err(problem_of_error)?;
    request.state().store().add_lines(lines);
    accept(&request, body)
}

/// Only forwards them: the console scrapes metrics from the services.
pub(super) async fn metrics(mut request: Request) -> Result<Response, Problem> {
    let body = receive(&mut request).await?;
    accept(&request, body)
}

async fn receive(request: &mut Request) -> Result<Vec<u8>, Problem> {
    let media_type = single_header(request, "content-type").and_then(|value| value.split(';').next()).map(str::trim);
    if !media_type.is_some_and(|value| value.eq_ignore_ascii_case(PROTOBUF)) {
        let problem = Problem::new(StatusCode::UnsupportedMediaType, "The body must be application/x-protobuf.");
        return Err(problem.header("accept", PROTOBUF));
    }
    read_body(request, &Limits { body: MAX_MESSAGE, ..Limits::default() }).await
}

fn problem_of_error(error: otlp::Error) -> Problem {
    match error {
        otlp::Error::Malformed => Problem::bad_request("The body is not an OTLP message.").kind("malformed-body"),
        otlp::Error::TooLarge => {
            Problem::new(StatusCode::PayloadTooLarge, "The message has too many spans, lines or attributes.")
        }
    }
}

fn accept(request: &tide::Request<App>, body: Vec<u8>) -> Result<Response, Problem> {
    if let Some(forwarder) = request.state().forwarder() {
        let end_to_end = |name: &str| !HOP_BY_HOP.contains(&name);
        let headers = request.iter().filter(|(name, _)| end_to_end(name.as_str())).flat_map(|(name, values)| {
            values.iter().map(|value| (name.as_str().to_owned(), value.as_str().to_owned())).collect::<Vec<_>>()
        });
        let path = request.url().path().to_owned();
        forwarder.offer(Message { path, headers: headers.collect(), body: body.into() });
    }
    // An empty response means that everything was accepted.
    let mut response = Response::new(StatusCode::Ok);
    response.insert_header("content-type", PROTOBUF);
    Ok(response)
}
