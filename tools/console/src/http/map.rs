//! The map and its parts.

use std::time::SystemTime;

use serde_json::json;
use tide::{Response, StatusCode};
use web::{Problem, json};

use super::Request;
use crate::journey::line_body;

/// Log lines of a part.
const LINES: usize = 50;

pub(super) async fn map(request: Request) -> Result<Response, Problem> {
    Ok(json(StatusCode::Ok, &request.state().map().body(SystemTime::now())))
}

pub(super) async fn history(request: Request) -> Result<Response, Problem> {
    Ok(json(StatusCode::Ok, &request.state().map().history(SystemTime::now())))
}

/// A part with its health, its metrics and its last log lines.
pub(super) async fn part(request: Request) -> Result<Response, Problem> {
    let (app, id) = (request.state(), request.param("id").unwrap_or_default());
    let found = app.map().part(id, SystemTime::now());
    let (part, health, metrics) = found.ok_or_else(|| Problem::not_found("There is no such part."))?;
    let lines = app.store().lines(LINES, |line| *line.service == *id);
    let logs: Vec<_> = lines.iter().map(|line| line_body(line, None)).collect();
    Ok(json(StatusCode::Ok, &json!({ "part": part, "health": health, "metrics": metrics, "logs": logs })))
}
