//! Patients: register, list, read, replace, remove.

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
    store::{Begin, Direction, List, Listed, Order, Position, Search, SortField},
};

/// Patients of a list, unless the client wants another number, and at most.
const LIMIT: (i64, i64) = (100, 1000);
/// Patients of a page, unless the client wants another number.
const PAGE_SIZE: i64 = 10;
/// Patients that a page can leave out before it, each of which costs time.
const SKIP: i64 = 100_000;
/// The longest idempotency key, in characters.
const KEY_LENGTH: usize = 255;

/// Register a patient
///
/// The billing account is opened on the way. While the billing service does not answer, its status is PENDING, and it is
/// opened later.
#[utoipa::path(
    post, path = "/patients", tag = "patients", request_body = PatientInput,
    params(("Idempotency-Key" = Option<String>, Header, max_length = 255, pattern = "^[!-~]+$",
        description = "1 to 255 visible ASCII characters, new for each new patient. A repeated request with the same key gives the patient of the first one.")),
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
    let input: PatientInput = read_json(&mut request, app.limits()).await?;
    let details = input.parse(app.registry().latest_day())?;
    let registered = app.registry().register(details, key, trace).await?;
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
/// Gives at most `limit` patients; where there are more, the header `Link` leads to the next ones, and costs the same
/// however far one goes. With `page` or `size` it gives a page with the size of the whole instead.
#[utoipa::path(
    get, path = "/patients", tag = "patients",
    params(
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1000, description = "Patients at most; 100 unless given"),
        ("cursor" = Option<String>, Query, format = "cursor", description = "From the Link of an earlier answer with the same sort"),
        ("search" = Option<String>, Query, pattern = "^[^\\x00]*$", description = "Part of a name or an email, whatever its case; without three letters or digits in a row, only the beginning of a word"),
        ("sort" = Option<String>, Query, pattern = "^(asc|desc|-?(id|name|email|dateOfBirth|registeredDate))?$",
            description = "id, name, email, dateOfBirth or registeredDate, with - before it for the reverse; or asc or desc, by sortField"),
        ("page" = Option<i64>, Query, minimum = 1, maximum = 100001, description = "Number of a page, from 1; it must not begin after the first 100000 patients, which `cursor` can"),
        ("size" = Option<i64>, Query, minimum = 1, maximum = 1000, description = "Patients on a page; 10 unless given"),
        ("sortField" = Option<String>, Query, pattern = "^(id|name|email|dateOfBirth|registeredDate)?$",
            description = "By what to sort where sort does not say it; unless given, id, on pages name"),
        ("searchValue" = Option<String>, Query, pattern = "^[^\\x00]*$", description = "On pages: as search"),
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
    // It has no meaning here; a wrong one is told all the same.
    let _ = query.text("searchValue");
    let after = query.parsed("cursor", |text| cursor::decode(text, order));
    let begin = after.map_or(Begin::First, Begin::After);
    let (term, sort) = query.finish((term, sort))?;
    let search = term.as_deref().map(Search::new);
    if search == Some(None) {
        return Ok(json(StatusCode::Ok, &[(); 0]));
    }
    // One more than asked tells whether there are more.
    let list = List { order, search: search.flatten(), begin, limit: limit + 1 };
    let mut patients = request.state().registry().list(&list).await?;
    let more = patients.len() as i64 > limit;
    patients.truncate(limit as usize);
    let bodies: Vec<_> = patients.iter().map(|listed| PatientBody::from(&listed.patient)).collect();
    let mut response = json(StatusCode::Ok, &bodies);
    if let Some(Listed { patient, sort_key }) = patients.last().filter(|_| more) {
        let mut next = Serializer::new(String::new());
        next.append_pair("limit", &limit.to_string());
        for (name, value) in [("sort", sort), ("sortField", sort_field), ("search", term)] {
            if let Some(value) = value {
                next.append_pair(name, &value);
            }
        }
        next.append_pair("cursor", &cursor::encode(&Position { sort_key: sort_key.clone(), id: patient.id }));
        response.insert_header("link", format!("</patients?{}>; rel=\"next\"", next.finish()));
    }
    Ok(response)
}

async fn page(request: &Request, mut query: Query) -> Result<Response, Problem> {
    // These have no meaning on pages; a wrong one is told all the same.
    let _ = (query.number("limit", 1..=LIMIT.1), query.text("search"));
    let page = query.number("page", 1..=SKIP + 1).unwrap_or(1);
    let size = query.number("size", 1..=LIMIT.1).unwrap_or(PAGE_SIZE);
    let skip = (page - 1) * size;
    if skip > SKIP {
        query.reject("page", format!("must not begin after the first {SKIP} patients; a list with cursor can"));
    }
    let order = order(&mut query, SortField::Name);
    let term = query.text("searchValue");
    query.finish(())?;
    let search = term.as_deref().map(Search::new);
    let (patients, total) = if search == Some(None) {
        (Vec::new(), 0)
    } else {
        let list = List { order, search: search.flatten(), begin: Begin::Skip(skip), limit: size };
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
        ("If-Match" = Option<String>, Header, format = "entity-tag", description = "ETag of the version that is wanted; any version unless given", example = "\"1\""),
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
        ("If-Match" = Option<String>, Header, format = "entity-tag", description = "ETag of the version that is replaced; any version unless given", example = "\"1\""),
        ("If-None-Match" = Option<String>, Header, format = "entity-tag", description = "ETags of versions that are not replaced; with * none is", example = "\"1\""),
    ),
    responses(
        (status = 200, description = "The patient as it is now", body = PatientBody, headers(
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

/// Remove a patient
///
/// The billing account is closed soon after.
#[utoipa::path(
    delete, path = "/patients/{id}", tag = "patients",
    params(
        ("id" = Uuid, Path, description = "Id of the patient"),
        ("If-Match" = Option<String>, Header, format = "entity-tag", description = "ETag of the version that is removed; any version unless given", example = "\"1\""),
        ("If-None-Match" = Option<String>, Header, format = "entity-tag", description = "ETags of versions that are not removed; with * none is", example = "\"1\""),
    ),
    responses(
        (status = 204, description = "Removed"),
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
/// 400 if it is no UUID in its usual form.
pub(super) fn patient_id(request: &Request) -> Result<Uuid, Problem> {
    let text = request.param("id").unwrap_or_default();
    // The parser alone takes braces, `urn:uuid:` and no hyphens too.
    let usual = text.len() == uuid::fmt::Hyphenated::LENGTH;
    usual.then(|| text.parse().ok()).flatten().ok_or_else(|| {
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
    // Of two, neither is surely the one that a repetition will have.
    let valid = values.iter().count() == 1
        && (1..=KEY_LENGTH).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_graphic());
    if valid {
        return Ok(Some(key.to_owned()));
    }
    Err(Problem::bad_request("The Idempotency-Key must be 1 to 255 visible ASCII characters.")
        .kind("invalid-parameter"))
}

/// The order that `sort` and `sortField` ask for: `sort` names a field or, as the later form of the originals has it, a
/// direction alone.
fn order(query: &mut Query, unless_given: SortField) -> Order {
    let field = query.parsed("sortField", parse_field).unwrap_or(unless_given);
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
    let why = |why| format!("{why}, with - before it for the reverse; or asc or desc");
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
