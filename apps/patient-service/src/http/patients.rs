//! Handlers of `/patients`: register, list, read, replace, delete.

use form_urlencoded::Serializer;
use tide::{Response, StatusCode};
use uuid::Uuid;
use web::{Problem, Query, json, no_content, read_json};

use super::{
    Request,
    body::{AccountBody, PageBody, PatientBody, PatientInput, RegisteredBody},
    cursor,
    preconditions::{entity_tag, version_condition},
};
use crate::{
    patient::Patient,
    store::{Begin, Direction, List, ListedPatient, Order, Position, Search, SortField},
};

/// Patients in a list: the default and the maximum.
const LIMIT: (i64, i64) = (100, 1000);
/// Default number of patients on a page.
const PAGE_SIZE: i64 = 10;
/// Most patients before a page. Each of them costs time (`OFFSET`).
const MAX_OFFSET: i64 = 100_000;
/// The longest idempotency key, in characters.
const MAX_KEY_LENGTH: usize = 255;

/// Register a patient
///
/// Opens the billing account too. If the billing service does not answer in time, the status of the account is PENDING and it
/// is opened later.
#[utoipa::path(
    post, path = "/patients", tag = "patients", request_body = PatientInput,
    params(("Idempotency-Key" = Option<String>, Header, max_length = 255, pattern = "^[!-~]+$",
        description = "1 to 255 visible ASCII characters, unique to each new patient among those of one client. A repeated request with the same key returns the patient of the first one.")),
    responses(
        (status = 201, description = "Registered", body = RegisteredBody, headers(
            ("Location" = String, description = "Path of the patient"),
            ("ETag" = String, description = "Version of the patient"))),
        (status = 400, response = super::responses::BadRequest),
        (status = 409, response = super::responses::Conflict),
        (status = 413, response = super::responses::TooLarge),
        (status = 415, response = super::responses::UnsupportedMediaType),
        (status = 422, response = super::responses::KeyReused),
        (status = 503, response = super::responses::Unavailable),
    )
)]
pub(super) async fn create(mut request: Request) -> Result<Response, Problem> {
    let trace = web::trace(&request);
    let app = request.state().clone();
    let key = idempotency_key(&request)?;
    let owner = web::caller(&request).owner();
    let input: PatientInput = read_json(&mut request, app.limits()).await?;
    let details = input.parse(app.registry().latest_day())?;
    let registered = app.registry().register(details, key, &owner, trace).await?;
    let body = RegisteredBody {
        patient: PatientBody::from(&registered.patient),
        billing: AccountBody::from(registered.account.as_ref()),
    };
    let mut response = json(StatusCode::Created, &body);
    response.insert_header("location", format!("/patients/{}", registered.patient.id));
    response.insert_header("etag", entity_tag(registered.patient.version));
    let (stored, billed) = (registered.stored_in.as_secs_f64() * 1e3, registered.billed_in.as_secs_f64() * 1e3);
    response.insert_header("server-timing", format!("store;dur={stored:.2}, billing;dur={billed:.2}"));
    Ok(response)
}

/// List patients
///
/// Returns at most `limit` patients. If there are more, the header `Link` leads to the next ones, at the same cost for every
/// part of the list. With `page` or `size`, returns a page with the total number instead.
#[utoipa::path(
    get, path = "/patients", tag = "patients",
    params(
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1000, description = "Maximum number of patients; 100 by default"),
        ("cursor" = Option<String>, Query, format = "cursor", description = "From the Link of an earlier response with the same sort"),
        ("search" = Option<String>, Query, pattern = "^[^\\x00]*$", description = "Part of a name or an email, case-insensitive; without three consecutive letters or digits, only the beginning of a word"),
        ("sort" = Option<String>, Query, pattern = "^(asc|desc|-?(id|name|email|dateOfBirth|registeredDate))?$",
            description = "id, name, email, dateOfBirth or registeredDate, prefixed with - for descending order; or asc or desc, with sortField"),
        ("page" = Option<i64>, Query, minimum = 1, maximum = 100001, description = "Page number, from 1. A page must not begin after the first 100000 patients; use `cursor` for those"),
        ("size" = Option<i64>, Query, minimum = 1, maximum = 1000, description = "Patients on a page; 10 by default"),
        ("sortField" = Option<String>, Query, pattern = "^(id|name|email|dateOfBirth|registeredDate)?$",
            description = "Field to sort by, if sort does not name one; by default id, on pages name"),
        ("searchValue" = Option<String>, Query, pattern = "^[^\\x00]*$", description = "On pages: same as search"),
    ),
    responses(
        (status = 200, description = "Patients, or a page of them", body = super::responses::ListOrPage, headers(
            ("Link" = Option<String>, description = "The next patients, rel=\"next\""))),
        (status = 400, response = super::responses::BadRequest),
        (status = 503, response = super::responses::Unavailable),
    )
)]
pub(super) async fn list(request: Request) -> Result<Response, Problem> {
    let query = Query::of(&request);
    if query.has("page") || query.has("size") { page(&request, query).await } else { keyset(&request, query).await }
}

async fn keyset(request: &Request, mut query: Query) -> Result<Response, Problem> {
    let limit = query.number("limit", 1..=LIMIT.1).unwrap_or(LIMIT.0);
    let (sort, sort_field) = (query.text("sort"), query.text("sortField"));
    let order = order(&mut query, SortField::Id);
    let term = query.text("search");
    // Ignored here, but a malformed one is still reported.
    let _ = query.text("searchValue");
    let after = query.parsed("cursor", |text| cursor::decode(text, order));
    let begin = after.map_or(Begin::First, Begin::After);
    let (term, sort) = query.finish((term, sort))?;
    let search = term.as_deref().map(Search::new);
    if search == Some(None) {
        return Ok(json(StatusCode::Ok, &[(); 0]));
    }
    // One more than requested shows whether there are more.
    let list = List { order, search: search.flatten(), begin, limit: limit + 1 };
    let mut patients = request.state().registry().list(&list).await?;
    let more = patients.len() as i64 > limit;
    patients.truncate(limit as usize);
    let bodies: Vec<_> = patients.iter().map(|listed| PatientBody::from(&listed.patient)).collect();
    let mut response = json(StatusCode::Ok, &bodies);
    if let Some(ListedPatient { patient, sort_key }) = patients.last().filter(|_| more) {
        let mut next = Serializer::new(String::new());
        next.append_pair("limit", &limit.to_string());
        for (name, value) in [("sort", sort), ("sortField", sort_field), ("search", term)] {
            if let Some(value) = value {
                next.append_pair(name, &value);
            }
        }
        next.append_pair("cursor", &cursor::encode(&Position { sort_key: sort_key.clone(), id: patient.id }, order));
        response.insert_header("link", format!("</patients?{}>; rel=\"next\"", next.finish()));
    }
    Ok(response)
}

async fn page(request: &Request, mut query: Query) -> Result<Response, Problem> {
    // Ignored on pages, but malformed ones are still reported.
    let _ = (query.number("limit", 1..=LIMIT.1), query.text("search"));
    let page = query.number("page", 1..=MAX_OFFSET + 1).unwrap_or(1);
    let size = query.number("size", 1..=LIMIT.1).unwrap_or(PAGE_SIZE);
    let offset = (page - 1) * size;
    if offset > MAX_OFFSET {
        query.reject("page", format!("must not begin after the first {MAX_OFFSET} patients; a list with cursor can"));
    }
    let order = order(&mut query, SortField::Name);
    let term = query.text("searchValue");
    query.finish(())?;
    let search = term.as_deref().map(Search::new);
    let (patients, total) = if search == Some(None) {
        (Vec::new(), 0)
    } else {
        let list = List { order, search: search.flatten(), begin: Begin::Offset(offset), limit: size };
        let registry = request.state().registry();
        registry.list_and_count(&list).await?
    };
    let body = PageBody {
        patients: patients.iter().map(|listed| PatientBody::from(&listed.patient)).collect(),
        page,
        size,
        total_pages: (total + size - 1) / size,
        total_elements: total,
    };
    Ok(json(StatusCode::Ok, &body))
}

/// Read a patient
#[utoipa::path(
    get, path = "/patients/{id}", tag = "patients",
    params(
        ("id" = Uuid, Path, description = "Id of the patient"),
        ("If-Match" = Option<String>, Header, format = "entity-tag", description = "ETag of the requested version; any version by default", example = "\"1\""),
        ("If-None-Match" = Option<String>, Header, format = "entity-tag", description = "ETag of the version that the client has", example = "\"1\""),
    ),
    responses(
        (status = 200, description = "The patient", body = PatientBody, headers(
            ("ETag" = String, description = "Version of the patient"))),
        (status = 304, description = "The client has this version"),
        (status = 400, response = super::responses::BadRequest),
        (status = 404, response = super::responses::NotFound),
        (status = 412, response = super::responses::PreconditionFailed),
        (status = 503, response = super::responses::Unavailable),
    )
)]
pub(super) async fn read(request: Request) -> Result<Response, Problem> {
    let id = patient_id(&request)?;
    Ok(with_patient(&request.state().registry().find(id).await?))
}

/// Replace a patient's data
#[utoipa::path(
    put, path = "/patients/{id}", tag = "patients", request_body = PatientInput,
    params(
        ("id" = Uuid, Path, description = "Id of the patient"),
        ("If-Match" = Option<String>, Header, format = "entity-tag", description = "ETag of the version to replace; any version by default", example = "\"1\""),
        ("If-None-Match" = Option<String>, Header, format = "entity-tag", description = "ETags of versions not to replace; * for all", example = "\"1\""),
    ),
    responses(
        (status = 200, description = "The updated patient", body = PatientBody, headers(
            ("ETag" = String, description = "New version of the patient"))),
        (status = 400, response = super::responses::BadRequest),
        (status = 404, response = super::responses::NotFound),
        (status = 409, response = super::responses::Conflict),
        (status = 412, response = super::responses::PreconditionFailed),
        (status = 413, response = super::responses::TooLarge),
        (status = 415, response = super::responses::UnsupportedMediaType),
        (status = 503, response = super::responses::Unavailable),
    )
)]
pub(super) async fn update(mut request: Request) -> Result<Response, Problem> {
    let trace = web::trace(&request);
    let app = request.state().clone();
    let id = patient_id(&request)?;
    let condition = version_condition(&request)?;
    let input: PatientInput = read_json(&mut request, app.limits()).await?;
    let details = input.parse(app.registry().latest_day())?;
    Ok(with_patient(&app.registry().update(id, &condition, details, trace).await?))
}

/// Delete a patient
///
/// The billing account is closed soon afterwards.
#[utoipa::path(
    delete, path = "/patients/{id}", tag = "patients",
    params(
        ("id" = Uuid, Path, description = "Id of the patient"),
        ("If-Match" = Option<String>, Header, format = "entity-tag", description = "ETag of the version to delete; any version by default", example = "\"1\""),
        ("If-None-Match" = Option<String>, Header, format = "entity-tag", description = "ETags of versions not to delete; * for all", example = "\"1\""),
    ),
    responses(
        (status = 204, description = "Deleted"),
        (status = 400, response = super::responses::BadRequest),
        (status = 404, response = super::responses::NotFound),
        (status = 412, response = super::responses::PreconditionFailed),
        (status = 503, response = super::responses::Unavailable),
    )
)]
pub(super) async fn delete(request: Request) -> Result<Response, Problem> {
    let trace = web::trace(&request);
    let id = patient_id(&request)?;
    let condition = version_condition(&request)?;
    request.state().registry().delete(id, &condition, trace).await?;
    Ok(no_content())
}

/// The id in the path.
///
/// # Errors
/// 400 if it is not a hyphenated UUID.
pub(super) fn patient_id(request: &Request) -> Result<Uuid, Problem> {
    let text = request.param("id").unwrap_or_default();
    // The parser also accepts braces, `urn:uuid:` and no hyphens.
    let is_hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
    is_hyphenated.then(|| text.parse().ok()).flatten().ok_or_else(|| {
        Problem::bad_request("The id in the path is not valid.").kind("invalid-parameter").field("id", "must be a UUID")
    })
}

fn with_patient(patient: &Patient) -> Response {
    let mut response = json(StatusCode::Ok, &PatientBody::from(patient));
    response.insert_header("etag", entity_tag(patient.version));
    response
}

fn idempotency_key(request: &Request) -> Result<Option<String>, Problem> {
    let Some(values) = request.header("idempotency-key") else { return Ok(None) };
    let key = values.last().as_str();
    // Of two keys it is not clear which one a retry will have.
    let valid = values.iter().count() == 1
        && (1..=MAX_KEY_LENGTH).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_graphic());
    if valid {
        return Ok(Some(key.to_owned()));
    }
    Err(Problem::bad_request("The Idempotency-Key must be 1 to 255 visible ASCII characters.")
        .kind("invalid-parameter"))
}

/// The order of `sort` and `sortField`: `sort` names a field or, in the later form of the originals, only a direction.
fn order(query: &mut Query, default: SortField) -> Order {
    let field = query.parsed("sortField", parse_field).unwrap_or(default);
    query.parsed("sort", |text| parse_sort(text, field)).unwrap_or(Order { field, direction: Direction::Ascending })
}

fn parse_sort(text: &str, field: SortField) -> Result<Order, String> {
    let (name, direction) = match text {
        "asc" => return Ok(Order { field, direction: Direction::Ascending }),
        "desc" => return Ok(Order { field, direction: Direction::Descending }),
        _ => match text.strip_prefix('-') {
            Some(name) => (name, Direction::Descending),
            None => (text, Direction::Ascending),
        },
    };
    let why = |why| format!("{why}, prefixed with - for descending order; or asc or desc");
    Ok(Order { field: parse_field(name).map_err(why)?, direction })
}

fn parse_field(text: &str) -> Result<SortField, String> {
    match text {
        "id" => Ok(SortField::Id),
        "name" => Ok(SortField::Name),
        "email" => Ok(SortField::Email),
        "dateOfBirth" => Ok(SortField::DateOfBirth),
        "registeredDate" => Ok(SortField::RegisteredDate),
        _ => Err("must be id, name, email, dateOfBirth or registeredDate".to_owned()),
    }
}
