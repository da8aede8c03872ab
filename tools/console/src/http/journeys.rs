//! Journeys, log lines and the live stream.

use std::time::{Duration, SystemTime};

use runtime::timeout;
use serde_json::json;
use tide::{Response, StatusCode};
use web::{Problem, Query, json};

use super::Request;
use crate::{
    app::App,
    journey::{from_hex, line_body},
    live::{self, MAX_JOURNEYS, View},
    store::TraceId,
};

/// `Retry-After` of a stream that was rejected.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Log lines in a list: by default, and at most.
const LINES: (usize, usize) = (200, 1000);

fn hexadecimal<const N: usize>(text: &str) -> Result<[u8; N], String> {
    from_hex(text).ok_or_else(|| format!("must be {} lower-case hexadecimal digits", 2 * N))
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("must be 1 or 0".to_owned()),
    }
}

pub(super) async fn stream(request: Request) -> Result<Response, Problem> {
    let mut query = Query::of(&request);
    let trace = query.parsed("trace", hexadecimal::<16>);
    let errors_only = query.parsed("error", boolean).unwrap_or_default();
    let view = query.text("view").unwrap_or_else(|| "map".to_owned());
    let view = match (view.as_str(), trace) {
        ("map", _) => View::Map,
        ("lab", _) => View::Lab,
        ("journeys", _) => View::Journeys { errors_only },
        ("journey", Some(trace)) => View::Journey(trace),
        ("journey", None) => {
            if !query.has("trace") {
                query.reject("trace", "is missing");
            }
            View::Map
        }
        _ => {
            query.reject("view", "must be map, journeys, journey or lab");
            View::Map
        }
    };
    let view = query.finish(view)?;
    let app = App::of(&request);
    let slot = app.stream_slots().take();
    let slot = slot.ok_or_else(|| Problem::unavailable("There are too many open pages.", RETRY_AFTER))?;
    let (events, response) = web::events();
    let end = app.session().map(|session| session.end.duration_since(SystemTime::now()).unwrap_or_default());
    runtime::spawn(async move {
        let send = Box::pin(live::send(app, view, events, slot));
        match end {
            // The page then asks for a login.
            Some(end) => drop(timeout(end, send).await),
            None => send.await,
        }
    })
    .detach();
    Ok(response)
}

pub(super) async fn list(request: Request) -> Result<Response, Problem> {
    let mut query = Query::of(&request);
    let errors_only = query.parsed("error", boolean).unwrap_or_default();
    let limit = query.number("limit", 1..=1000).unwrap_or(MAX_JOURNEYS);
    query.finish(())?;
    let app = request.state();
    let journeys: Vec<_> = live::journeys(app, limit, errors_only).into_iter().map(|(_, summary)| summary).collect();
    let size = app.store().size();
    Ok(json(StatusCode::Ok, &json!({ "journeys": journeys, "total": size.traces, "evicted": size.evicted })))
}

pub(super) async fn read(request: Request) -> Result<Response, Problem> {
    let app = &App::of(&request);
    let not_found = || Problem::not_found("There is no such trace: it was evicted, or has not arrived yet.");
    let id: TraceId = from_hex(request.param("trace").unwrap_or_default()).ok_or_else(not_found)?;
    let mut journey = app.journey(&id).ok_or_else(not_found)?;
    if journey.patient_to_read_back().is_some() {
        app.read_back(&id, &journey).await;
        journey = app.journey(&id).unwrap_or(journey);
    }
    Ok(json(StatusCode::Ok, &journey))
}

pub(super) async fn logs(request: Request) -> Result<Response, Problem> {
    let mut query = Query::of(&request);
    let trace = query.parsed("trace", hexadecimal::<16>);
    let span = query.parsed("span", hexadecimal::<8>);
    let service = query.text("service");
    let limit = query.number("limit", 1..=LINES.1).unwrap_or(LINES.0);
    query.finish(())?;
    let lines = request.state().store().lines(limit, |line| {
        (trace.is_none() || line.trace == trace)
            && (span.is_none() || line.span == span)
            && service.as_ref().is_none_or(|service| **service == *line.service)
    });
    let logs: Vec<_> = lines.iter().map(|line| line_body(line, None)).collect();
    Ok(json(StatusCode::Ok, &json!({ "logs": logs })))
}
