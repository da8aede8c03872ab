//! The lab, and the agent that does its work.

use std::time::Duration;

use runtime::timeout;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tide::{Response, StatusCode};
use uuid::Uuid;
use web::{Limits, Problem, json, no_content, read_json};

use super::Request;
use crate::{
    app::App,
    canary, generator,
    guard::single_header,
    lab::{AgentPoll, LabError, MAX_SECONDS, Verb},
    live, load,
};

/// An agent's poll waits so long for work.
const WORK_WAIT: Duration = Duration::from_secs(5);

fn problem_of_error(refusal: LabError) -> Problem {
    let conflict = |detail: &str| Problem::new(StatusCode::Conflict, detail);
    match refusal {
        LabError::NoAgent => conflict("No agent asks for work. `just up` starts one on the host.").kind("no-agent"),
        LabError::Busy => conflict("Another run is under way.").kind("busy"),
        LabError::NotOffered => {
            Problem::bad_request("The agent does not offer this for this part.").kind("not-offered")
        }
        LabError::NoSuchRun => Problem::not_found("There is no such run."),
    }
}

pub(super) async fn read(request: Request) -> Result<Response, Problem> {
    let app = request.state();
    Ok(json(StatusCode::Ok, &live::lab(app)))
}

#[derive(Deserialize)]
struct NewRun {
    part: String,
    verb: Verb,
    seconds: u64,
}

pub(super) async fn begin(mut request: Request) -> Result<Response, Problem> {
    let NewRun { part, verb, seconds } = read_json(&mut request, &Limits::default()).await?;
    if !(1..=MAX_SECONDS).contains(&seconds) {
        let problem = Problem::bad_request("The time is not valid.").kind("invalid-parameter");
        return Err(problem.field("seconds", format!("must be a whole number from 1 to {MAX_SECONDS}")));
    }
    let app = App::of(&request);
    let run = app.lab().begin(&part, verb, seconds).map_err(problem_of_error)?;
    let lab = app.lab().clone();
    runtime::spawn(canary::measure(app, lab, run.clone())).detach();
    Ok(json(StatusCode::Accepted, &json!({ "run": run })))
}

pub(super) async fn run(request: Request) -> Result<Response, Problem> {
    let run = request.state().lab().read(request.param("run").unwrap_or_default());
    Ok(json(StatusCode::Ok, &run.ok_or_else(|| problem_of_error(LabError::NoSuchRun))?))
}

pub(super) async fn heal(request: Request) -> Result<Response, Problem> {
    request.state().lab().heal(request.param("run").unwrap_or_default()).map_err(problem_of_error)?;
    Ok(json(StatusCode::Accepted, &json!({})))
}

#[derive(Deserialize)]
struct NewLoad {
    rate: u32,
    seconds: u64,
}

pub(super) async fn begin_load(mut request: Request) -> Result<Response, Problem> {
    let NewLoad { rate, seconds } = read_json(&mut request, &Limits::default()).await?;
    let mut problem = Problem::bad_request("The load is not valid.").kind("invalid-parameter");
    let rate_is_wrong = !(1..=load::MAX_RATE).contains(&rate);
    let time_is_wrong = !(1..=load::MAX_SECONDS).contains(&seconds);
    if rate_is_wrong {
        problem = problem.field("rate", format!("must be a whole number from 1 to {}", load::MAX_RATE));
    }
    if time_is_wrong {
        problem = problem.field("seconds", format!("must be a whole number from 1 to {}", load::MAX_SECONDS));
    }
    if rate_is_wrong || time_is_wrong {
        return Err(problem);
    }
    let app = App::of(&request);
    let busy = || Problem::new(StatusCode::Conflict, "There is load already.").kind("busy");
    let stop = app.load().begin(rate, seconds).ok_or_else(busy)?;
    runtime::spawn(generator::run(app, rate, seconds, stop)).detach();
    Ok(json(StatusCode::Accepted, &json!({})))
}

pub(super) async fn end_load(request: Request) -> Result<Response, Problem> {
    request.state().load().stop();
    Ok(json(StatusCode::Ok, &json!({})))
}

/// A dead letter to send again: that of a record, by its place, or one of patient-service by its id.
#[derive(Deserialize)]
#[serde(untagged)]
enum Letter {
    Record { partition: i64, offset: i64 },
    OfPatientService { id: String },
}

impl Letter {
    /// Its name for the agent; none if it cannot be one.
    fn name(&self) -> Option<String> {
        match self {
            Self::Record { partition, offset } => Some(format!("{partition}:{offset}")),
            Self::OfPatientService { id } => {
                let event = id.strip_prefix("outbox-").is_some_and(|id| id.parse::<i64>().is_ok());
                let task = id.strip_prefix("billing-").is_some_and(|id| id.parse::<Uuid>().is_ok());
                (event || task).then(|| id.clone())
            }
        }
    }
}

/// Has a dead letter sent again, and tells what became of it.
pub(super) async fn resend(mut request: Request) -> Result<Response, Problem> {
    let letter: Letter = read_json(&mut request, &Limits::default()).await?;
    let letter = letter.name().ok_or_else(|| {
        let problem = Problem::bad_request("The dead letter is not valid.").kind("invalid-parameter");
        problem.field("id", "must be outbox-<number> or billing-<patient id>")
    })?;
    let trouble = request.state().lab().resend(&letter).await.map_err(problem_of_error)?;
    let state = if trouble.is_some() { "dead" } else { "accepted" };
    Ok(json(StatusCode::Ok, &json!({ "state": state, "detail": trouble })))
}

/// An agent's poll for work, which waits a while if there is none.
pub(super) async fn work(mut request: Request) -> Result<Response, Problem> {
    let app = request.state().clone();
    let expected = app.settings().agent_token.as_ref().map(|token| format!("Bearer {}", token.expose()));
    let given = single_header(&request, "authorization").map(str::to_owned);
    // Digests, so that the time of the comparison tells nothing.
    let digest = |text: &str| Sha256::digest(text.as_bytes());
    let is_right = expected.zip(given).is_some_and(|(expected, given)| digest(&expected) == digest(&given));
    if !is_right {
        let problem = Problem::new(StatusCode::Unauthorized, "The agent's token is missing or wrong.");
        return Err(problem.header("www-authenticate", "Bearer"));
    }
    let poll: AgentPoll = read_json(&mut request, &Limits::default()).await?;
    let again = poll.without_reports();
    let mut work = app.lab().poll(poll);
    if work.is_none() && timeout(WORK_WAIT, app.lab().wait_for_work()).await.is_ok() {
        work = app.lab().poll(again);
    }
    Ok(work.map_or_else(no_content, |work| json(StatusCode::Ok, &work)))
}
