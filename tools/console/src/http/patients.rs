//! Reads and writes of patients: a proxy of patient-service. Each write has its journey from the start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use bytes::Bytes;
use form_urlencoded::Serializer;
use futures_util::future::{join, join3};
use iso_currency::Currency;
use serde_json::{Value as Json, json};
use tide::{Response, StatusCode};
use uuid::Uuid;
use web::{Limits, Problem, Query, read_body};

use super::Request;
use crate::{
    app::{App, version_of},
    client::{RequestError, ServiceRequest, ServiceResponse},
    guard::single_header,
    journey::{Operation, from_hex, hex},
    live, samples,
    scrape::UNSAMPLED,
    store::{SentWrite, TraceId},
    time::nanos_now,
};

/// Patients and transactions in a list without `limit`.
const LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 1000;
const TRANSACTIONS: u32 = 100;
/// Journeys beside a patient.
const JOURNEYS: usize = 1000;

/// The decimal places of each currency.
static EXPONENTS: LazyLock<BTreeMap<String, u16>> = LazyLock::new(|| {
    let letters = || 'A'..='Z';
    let codes = letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| format!("{a}{b}{c}"))));
    codes.filter_map(|code| Some((code.clone(), Currency::from_code(&code)?.exponent()?))).collect()
});

pub(super) fn unreachable(error: &RequestError) -> Problem {
    Problem::new(StatusCode::BadGateway, format!("No answer from {error}.")).kind("unreachable")
}

/// The response of a service as it is, such as a problem.
pub(super) fn proxy_response(answer: &ServiceResponse) -> Response {
    let mut response = Response::new(answer.status);
    response.set_body(answer.body.to_vec());
    for name in ["content-type", "retry-after"] {
        if let Some(value) = answer.header(name) {
            response.insert_header(name, value);
        }
    }
    response
}

/// The cursor in the `Link` of a list.
fn next_cursor(answer: &ServiceResponse) -> Option<String> {
    let target = answer.header("link")?.split(['<', '>']).nth(1)?;
    let query = target.split_once('?')?.1;
    form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "cursor").map(|(_, value)| value.into_owned())
}

/// Says beside each currency how many decimal places it has.
fn with_exponents(mut value: Json) -> Json {
    fn add(value: &mut Json) {
        match value {
            Json::Array(all) => all.iter_mut().for_each(add),
            Json::Object(all) => {
                let exponent = all.get("currency").and_then(Json::as_str).and_then(|code| EXPONENTS.get(code)).copied();
                if all.contains_key("currency") {
                    all.insert("exponent".to_owned(), json!(exponent));
                }
                all.values_mut().for_each(add);
            }
            _ => {}
        }
    }
    add(&mut value);
    value
}

fn patient_id(request: &Request) -> Result<Uuid, Problem> {
    let text = request.param("id").unwrap_or_default();
    let id = Some(text).filter(|text| text.len() == uuid::fmt::Hyphenated::LENGTH).and_then(|text| text.parse().ok());
    id.ok_or_else(|| Problem::not_found("There is no patient with this id."))
}

fn list_path(limit: u32, term: Option<String>, cursor: Option<String>) -> String {
    let mut query = Serializer::new(String::new());
    query.append_pair("limit", &limit.to_string()).append_pair("sort", "-registeredDate");
    for (name, value) in [("search", term), ("cursor", cursor)] {
        if let Some(value) = value {
            query.append_pair(name, &value);
        }
    }
    format!("/patients?{}", query.finish())
}

pub(super) async fn list(request: Request) -> Result<Response, Problem> {
    let mut query = Query::of(&request);
    let (term, cursor) = (query.text("q"), query.text("cursor"));
    let limit = query.number("limit", 1..=MAX_LIMIT).unwrap_or(LIMIT);
    query.finish(())?;
    let path = list_path(limit, term, cursor);
    let answer = App::of(&request).call_patient_service(ServiceRequest::get(&path, &[UNSAMPLED])).await;
    let answer = answer.map_err(|error| unreachable(&error))?;
    if !answer.is_success() {
        return Ok(proxy_response(&answer));
    }
    Ok(web::json(StatusCode::Ok, &json!({ "patients": answer.json(), "next": next_cursor(&answer) })))
}

pub(super) async fn read(request: Request) -> Result<Response, Problem> {
    let (app, id) = (&App::of(&request), patient_id(&request)?);
    let (patient, billing, transactions) = (
        format!("/patients/{id}"),
        format!("/patients/{id}/billing"),
        format!("/patients/{id}/billing/transactions?limit={TRANSACTIONS}"),
    );
    let get = |path| app.call_patient_service(ServiceRequest::get(path, &[UNSAMPLED]));
    let (patient, billing, transactions) = join3(get(&patient), get(&billing), get(&transactions)).await;
    let patient = patient.map_err(|error| unreachable(&error))?;
    if !patient.is_success() {
        return Ok(proxy_response(&patient));
    }
    // The patient is shown whatever billing says.
    let problem_of = |answer: &Result<ServiceResponse, RequestError>| match answer {
        Ok(answer) if answer.is_success() => None,
        Ok(answer) => Some(answer.json()),
        Err(error) => Some(json!({ "title": "Bad Gateway", "status": 502, "detail": error.to_string() })),
    };
    let body_of = |answer: &Result<ServiceResponse, RequestError>| {
        answer.as_ref().ok().filter(|answer| answer.is_success()).map(|answer| with_exponents(answer.json()))
    };
    let tag = patient.header("etag").unwrap_or_default();
    let body = json!({
        "patient": patient.json(),
        "version": version_of(tag),
        "etag": tag,
        "billing": body_of(&billing),
        "billing_problem": problem_of(&billing).or(problem_of(&transactions)),
        "transactions": body_of(&transactions),
        "transactions_next": transactions.as_ref().ok().and_then(next_cursor),
        "journeys": journeys(app, id),
    });
    Ok(web::json(StatusCode::Ok, &body))
}

/// The journeys of what was written of a patient, the newest first.
fn journeys(app: &App, id: Uuid) -> Vec<Json> {
    let id = id.to_string();
    let lines = app.store().lines(usize::MAX, |line| line.trace.is_some() && line.text("patient_id") == Some(&id));
    let traces: BTreeSet<TraceId> = lines.iter().filter_map(|line| line.trace).collect();
    let of_patient = live::journeys(app, JOURNEYS, false).into_iter().filter(|(trace, summary)| {
        summary.kind != Operation::Read && (summary.patient.as_deref() == Some(&id) || traces.contains(trace))
    });
    of_patient.filter_map(|(trace, _)| app.journey(&trace)).map(|journey| json!(journey.summary)).collect()
}

/// A write in progress.
struct Write {
    app: App,
    trace: TraceId,
    traceparent: String,
}

impl Write {
    /// Begins its journey, before anything is sent.
    fn begin(request: &Request, method: &'static str, route: &'static str, patient: Option<Uuid>) -> Self {
        let context = web::trace(request);
        let trace = from_hex(&context.trace_id()).unwrap_or_default();
        let app = App::of(request);
        app.store().start_write(trace, SentWrite { at: nanos_now(), method, route, patient, version: None });
        Self { app, trace, traceparent: context.to_string() }
    }

    async fn send(
        &self,
        method: &'static str,
        path: &str,
        more: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<ServiceResponse, Problem> {
        let mut headers = vec![("traceparent", self.traceparent.as_str())];
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        headers.extend(more);
        let outgoing = ServiceRequest { method, path, headers: &headers, body: Bytes::from(body) };
        self.app.call_patient_service(outgoing).await.map_err(|error| unreachable(&error))
    }

    /// Adds to the journey what the response says.
    fn record(&self, patient: Option<Uuid>, version: Option<i64>) {
        self.app.store().update(self.trace, |trace| {
            if let Some(write) = &mut trace.write {
                write.patient = patient.or(write.patient);
                write.version = version;
            }
        });
    }

    /// The response to the page about a patient that was written.
    fn patient_response(&self, status: StatusCode, answer: &ServiceResponse) -> Response {
        let mut patient = answer.json();
        let billing = patient.as_object_mut().and_then(|patient| patient.remove("billing"));
        let tag = answer.header("etag").unwrap_or_default();
        let id = patient["id"].as_str().and_then(|id| id.parse().ok());
        self.record(id, version_of(tag));
        let mut body =
            json!({ "patient": patient, "version": version_of(tag), "etag": tag, "trace": hex(&self.trace) });
        if let Some(billing) = billing {
            body["billing"] = billing;
        }
        web::json(status, &body)
    }
}

/// A header that a write must have.
fn required(request: &Request, name: &'static str, status: u16) -> Result<String, Problem> {
    let value = single_header(request, name).map(str::to_owned);
    let status = StatusCode::try_from(status).unwrap_or(StatusCode::BadRequest);
    value.ok_or_else(|| Problem::new(status, format!("The header {name} is missing.")).kind("missing-header"))
}

pub(super) async fn create(mut request: Request) -> Result<Response, Problem> {
    let key = required(&request, "idempotency-key", 400)?;
    let body = read_body(&mut request, &Limits::default()).await?;
    let write = Write::begin(&request, "POST", "/patients", None);
    let answer = write.send("POST", "/patients", &[("idempotency-key", &key)], body).await?;
    Ok(if answer.status == 201 {
        write.patient_response(StatusCode::Created, &answer)
    } else {
        proxy_response(&answer)
    })
}

pub(super) async fn update(mut request: Request) -> Result<Response, Problem> {
    let (id, tag) = (patient_id(&request)?, required(&request, "if-match", 428)?);
    let body = read_body(&mut request, &Limits::default()).await?;
    let write = Write::begin(&request, "PUT", "/patients/:id", Some(id));
    let path = format!("/patients/{id}");
    let answer = write.send("PUT", &path, &[("if-match", &tag)], body).await?;
    match answer.status {
        200 => Ok(write.patient_response(StatusCode::Ok, &answer)),
        412 => Ok(precondition_failed(&write.app, &path, &answer).await),
        _ => Ok(proxy_response(&answer)),
    }
}

pub(super) async fn delete(request: Request) -> Result<Response, Problem> {
    let (id, tag) = (patient_id(&request)?, required(&request, "if-match", 428)?);
    let write = Write::begin(&request, "DELETE", "/patients/:id", Some(id));
    let path = format!("/patients/{id}");
    let answer = write.send("DELETE", &path, &[("if-match", &tag)], Vec::new()).await?;
    match answer.status {
        204 => {
            write.record(None, None);
            Ok(web::json(StatusCode::Ok, &json!({ "trace": hex(&write.trace) })))
        }
        412 => Ok(precondition_failed(&write.app, &path, &answer).await),
        _ => Ok(proxy_response(&answer)),
    }
}

/// A 412 with the current patient, so that the page can show what somebody else has changed.
async fn precondition_failed(app: &App, path: &str, problem: &ServiceResponse) -> Response {
    let mut body = problem.json();
    if let (Some(members), Ok(current)) =
        (body.as_object_mut(), app.call_patient_service(ServiceRequest::get(path, &[UNSAMPLED])).await)
        && current.is_success()
    {
        let tag = current.header("etag").unwrap_or_default();
        members.insert(
            "current".to_owned(),
            json!({ "patient": current.json(), "version": version_of(tag), "etag": tag }),
        );
    }
    let mut response = web::json(StatusCode::PreconditionFailed, &body);
    response.insert_header("content-type", Problem::CONTENT_TYPE);
    response
}

pub(super) async fn create_transaction(mut request: Request) -> Result<Response, Problem> {
    let id = patient_id(&request)?;
    let body = read_body(&mut request, &Limits::default()).await?;
    let write = Write::begin(&request, "POST", "/patients/:id/billing/transactions", Some(id));
    let answer = write.send("POST", &format!("/patients/{id}/billing/transactions"), &[], body).await?;
    if answer.status != 201 {
        return Ok(proxy_response(&answer));
    }
    let body = json!({ "transaction": with_exponents(answer.json()), "trace": hex(&write.trace) });
    Ok(web::json(StatusCode::Created, &body))
}

pub(super) async fn sample(_: Request) -> Result<Response, Problem> {
    Ok(web::json(StatusCode::Ok, &samples::patient()))
}

pub(super) async fn currencies(_: Request) -> Result<Response, Problem> {
    Ok(web::json(StatusCode::Ok, &*EXPONENTS))
}

/// What analytics could not read, and what the broker or billing has rejected of patient-service.
pub(super) async fn dead_letters(request: Request) -> Result<Response, Problem> {
    let mut query = Query::of(&request);
    let limit = query.number("limit", 1..=MAX_LIMIT).unwrap_or(LIMIT);
    let cursor = query.number("cursor", 1..=i64::MAX);
    query.finish(())?;
    let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
    let path = format!("/analytics/dead-letters?limit={limit}{cursor}");
    let app = App::of(&request);
    let of_topic = app.call_each_analytics_service(ServiceRequest::get(&path, &[UNSAMPLED]));
    let (of_topic, of_patient_service) = join(of_topic, app.lab().letters()).await;
    // Each list is shown whatever becomes of the others.
    let problem_of = |detail: String| json!({ "title": "Bad Gateway", "status": 502, "detail": detail });
    let (mut problem, mut next, mut letters) = (Json::Null, None, None);
    for answer in of_topic {
        match answer {
            Ok(answer) if answer.is_success() => {
                let found = answer.json().as_array().map(|all| all.iter().map(letter).collect::<Vec<_>>());
                letters.get_or_insert_with(Vec::new).extend(found.unwrap_or_default());
                next = next.or(next_cursor(&answer));
            }
            Ok(answer) => problem = answer.json(),
            Err(error) => problem = problem_of(format!("No answer from {error}.")),
        }
    }
    let outbox = match of_patient_service {
        Some(Ok(letters)) => json!(letters),
        Some(Err(error)) => {
            if problem.is_null() {
                problem = problem_of(format!("The dead letters of patient-service cannot be listed: {error}"));
            }
            Json::Null
        }
        None => Json::Null,
    };
    let body = json!({ "analytics": letters, "outbox": outbox, "next": next, "problem": problem });
    Ok(web::json(StatusCode::Ok, &body))
}

/// A dead letter of analytics as the page knows it.
fn letter(letter: &Json) -> Json {
    json!({
        "partition": letter["partition"],
        "offset": letter["offset"],
        "error": letter["error"],
        "bytes": letter["valueBytes"],
        "since": letter["storedAt"],
        "forwarded": letter["forwarded"],
    })
}
