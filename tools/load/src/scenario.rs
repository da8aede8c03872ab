//! The requests of a scenario: actions on patients.
//!
//! Existing patients are only read. A client updates and deletes patients that it has created itself, so that no two
//! clients conflict, and a registry in use keeps its data.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    options::ScenarioKind,
    target::{Connection, RequestError, Response},
};

/// Most own patients of a client; it forgets the oldest, which stay in the registry.
const MAX_OWN: usize = 10_000;
/// Page size of the list when existing patients are looked up.
const PAGE_SIZE: usize = 1000;
/// Page size of the list when the list is measured.
const LIST_SIZE: usize = 20;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    Create,
    Read,
    List,
    Update,
    Delete,
    Get,
}

impl Action {
    pub(crate) const ALL: [Self; 6] = [Self::Create, Self::Read, Self::List, Self::Update, Self::Delete, Self::Get];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Read => "read",
            Self::List => "list",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Get => "get",
        }
    }
}

/// The workload of a run, shared by its clients.
#[derive(Debug)]
pub(crate) struct Scenario {
    workload: Workload,
    /// Existing patients, which are read.
    known: Vec<Uuid>,
    /// Distinguishes the emails of this run from those of other runs.
    run: u64,
}

#[derive(Debug)]
enum Workload {
    Patients(ScenarioKind),
    Path(String),
}

/// A request about to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) action: Action,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Option<Bytes>,
    patient: Option<Uuid>,
}

#[derive(Deserialize)]
struct PatientId {
    id: Uuid,
}

impl Scenario {
    /// GET of one path, over and over.
    pub(crate) fn path(path: String) -> Self {
        Self { workload: Workload::Path(path), known: Vec::new(), run: 0 }
    }

    /// Requests of a kind of scenario. For reads, looks up existing patients, at most `limit`.
    ///
    /// # Errors
    /// If the service does not list its patients as the contract says.
    pub(crate) async fn patients(
        kind: ScenarioKind,
        connection: &mut Connection,
        limit: usize,
    ) -> Result<Self, String> {
        let known = if matches!(kind, ScenarioKind::Mixed | ScenarioKind::Read) {
            find_patients(connection, limit).await?
        } else {
            Vec::new()
        };
        Ok(Self { workload: Workload::Patients(kind), known, run: fastrand::u64(..) })
    }

    /// The number of existing patients.
    pub(crate) fn known(&self) -> usize {
        self.known.len()
    }
}

/// Ids of patients from the list, page by page.
async fn find_patients(connection: &mut Connection, limit: usize) -> Result<Vec<Uuid>, String> {
    let mut found = Vec::new();
    let mut path = Some(format!("/patients?limit={PAGE_SIZE}"));
    while let Some(current) = path.take().filter(|_| found.len() < limit) {
        let failed = |why: String| format!("GET {current}: {why}");
        let response = connection.send(Method::GET, &current, None).await;
        let response = response.map_err(|error| failed(error.to_string()))?;
        if !response.status.is_success() {
            return Err(failed(format!("status {}", response.status)));
        }
        let page: Vec<PatientId> = serde_json::from_slice(&response.body)
            .map_err(|error| failed(format!("expected an array of patients, each with an id: {error}")))?;
        found.extend(page.into_iter().map(|patient| patient.id));
        path = response.link.as_deref().and_then(next_page).map(str::to_owned);
    }
    found.truncate(limit);
    Ok(found)
}

/// The path of the next page in a `Link` header.
fn next_page(link: &str) -> Option<&str> {
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    parameters.contains("rel=\"next\"").then_some(target).filter(|target| target.starts_with('/'))
}

/// A client: chooses its next request, and keeps track of the patients that it has created.
#[derive(Debug)]
pub(crate) struct Client {
    scenario: Arc<Scenario>,
    number: usize,
    created: u64,
    /// Patients of its own, oldest first.
    own: VecDeque<Uuid>,
    random: fastrand::Rng,
}

impl Client {
    pub(crate) fn new(scenario: Arc<Scenario>, number: usize) -> Self {
        Self { scenario, number, created: 0, own: VecDeque::new(), random: fastrand::Rng::new() }
    }

    /// The next request.
    pub(crate) fn next(&mut self) -> Request {
        let action = match &self.scenario.workload {
            Workload::Path(path) => return without_body(Action::Get, path.clone(), None),
            Workload::Patients(ScenarioKind::Mixed) => match self.random.u8(0..100) {
                0..40 => Action::Read,
                40..55 => Action::List,
                55..80 => Action::Create,
                80..92 => Action::Update,
                _ => Action::Delete,
            },
            Workload::Patients(ScenarioKind::Create) => Action::Create,
            Workload::Patients(ScenarioKind::Read) => Action::Read,
            Workload::Patients(ScenarioKind::List) => Action::List,
            Workload::Patients(ScenarioKind::Update) => Action::Update,
            Workload::Patients(ScenarioKind::Delete) => Action::Delete,
        };
        // Without a patient, it creates one.
        match action {
            Action::List => without_body(Action::List, format!("/patients?limit={LIST_SIZE}"), None),
            Action::Read => match self.any_patient() {
                Some(id) => without_body(Action::Read, format!("/patients/{id}"), Some(id)),
                None => self.create(),
            },
            Action::Update => match self.own.pop_front() {
                Some(id) => self.write(Action::Update, Method::PUT, format!("/patients/{id}"), Some(id)),
                None => self.create(),
            },
            Action::Delete => match self.own.pop_front() {
                Some(id) => Request {
                    method: Method::DELETE,
                    ..without_body(Action::Delete, format!("/patients/{id}"), Some(id))
                },
                None => self.create(),
            },
            Action::Create | Action::Get => self.create(),
        }
    }

    /// How many patients this client creates before the run: its part of `own`, which all clients create together.
    pub(crate) fn patients_to_create(&self, own: usize, clients: usize) -> usize {
        let needs_patients =
            matches!(self.scenario.workload, Workload::Patients(ScenarioKind::Update | ScenarioKind::Delete));
        if needs_patients { own.div_ceil(clients) } else { 0 }
    }

    /// The number of its own patients.
    pub(crate) fn own(&self) -> usize {
        self.own.len()
    }

    /// Records the response to a request; returns the patient if it created one.
    pub(crate) fn record(&mut self, request: &Request, response: &Result<Response, RequestError>) -> Option<Uuid> {
        let response = response.as_ref().ok().filter(|response| response.status.is_success());
        match (request.action, response) {
            (Action::Create, Some(response)) => {
                let PatientId { id } = serde_json::from_slice(&response.body).ok()?;
                self.own.push_back(id);
                if self.own.len() > MAX_OWN {
                    self.own.pop_front();
                }
                Some(id)
            }
            (Action::Update, Some(_)) => {
                self.own.extend(request.patient);
                None
            }
            _ => None,
        }
    }

    /// A request that creates a patient.
    pub(crate) fn create(&mut self) -> Request {
        self.created += 1;
        self.write(Action::Create, Method::POST, "/patients".to_owned(), None)
    }

    fn write(&mut self, action: Action, method: Method, path: String, patient: Option<Uuid>) -> Request {
        let random = &mut self.random;
        let mut pick = |words: &'static [&'static str]| words[random.usize(..words.len())];
        let (first, last, street) = (pick(&FIRST_NAMES), pick(&LAST_NAMES), pick(&STREETS));
        let email = match patient {
            None => format!("{:016x}.{}.{}@example.org", self.scenario.run, self.number, self.created),
            Some(id) => format!("{}@example.org", id.simple()),
        };
        let body = format!(
            "{{\"name\":\"{first} {last}\",\"email\":\"{email}\",\"address\":\"{} {street}, Springfield\",\
             \"dateOfBirth\":\"{}-{:02}-{:02}\",\"registeredDate\":\"{}-{:02}-{:02}\"}}",
            random.u16(1..1000),
            random.u16(1930..2020),
            random.u8(1..13),
            random.u8(1..29),
            random.u16(2020..2026),
            random.u8(1..13),
            random.u8(1..29),
        );
        Request { action, method, path, body: Some(body.into()), patient }
    }

    /// Any existing or own patient.
    fn any_patient(&mut self) -> Option<Uuid> {
        let (known, own) = (self.scenario.known.len(), self.own.len());
        match known + own {
            0 => None,
            all => {
                let index = self.random.usize(..all);
                Some(if index < known { self.scenario.known[index] } else { self.own[index - known] })
            }
        }
    }
}

/// A GET without a body.
fn without_body(action: Action, path: String, patient: Option<Uuid>) -> Request {
    Request { action, method: Method::GET, path, body: None, patient }
}

const FIRST_NAMES: [&str; 16] = [
    "Amara", "Bruno", "Chen", "Dilnoza", "Elif", "Farid", "Greta", "Hiroshi", "Ines", "Jakub", "Kirsten", "Lwazi",
    "Maria", "Noor", "Olena", "Pedro",
];
const LAST_NAMES: [&str; 16] = [
    "Abebe", "Bianchi", "Castillo", "Dubois", "Eriksson", "Fischer", "Garcia", "Haddad", "Ivanova", "Jensen",
    "Kowalski", "Lindgren", "Mbeki", "Nakamura", "Okafor", "Petrov",
];
const STREETS: [&str; 8] =
    ["Main Street", "Station Road", "Oak Avenue", "Church Lane", "Mill Road", "Park View", "High Street", "Hill Rise"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hyper::StatusCode;

    use super::*;

    fn client(kind: ScenarioKind, known: Vec<Uuid>) -> Client {
        Client::new(Arc::new(Scenario { workload: Workload::Patients(kind), known, run: 7 }), 3)
    }

    fn created(id: Uuid) -> Result<Response, RequestError> {
        let body = format!("{{\"id\":\"{id}\",\"name\":\"x\"}}").into();
        Ok(Response { status: StatusCode::CREATED, link: None, body })
    }

    #[test]
    fn the_mix_is_as_documented() {
        let mut client = client(ScenarioKind::Mixed, vec![Uuid::nil()]);
        let mut counts = BTreeMap::<_, usize>::new();
        let rounds = 100_000;
        for _ in 0..rounds {
            let request = client.next();
            *counts.entry(request.action).or_default() += 1;
            client.record(&request, &created(Uuid::now_v7()));
        }
        for (action, percent) in [
            (Action::Read, 40.0),
            (Action::List, 15.0),
            (Action::Create, 25.0),
            (Action::Update, 12.0),
            (Action::Delete, 8.0),
        ] {
            let measured = counts[&action] as f64 / rounds as f64 * 100.0;
            assert!((measured - percent).abs() < 1.0, "{action:?}: {measured} %");
        }
    }

    #[test]
    fn only_own_patients_that_are_not_deleted_are_changed() {
        let known = Uuid::now_v7();
        let mut client = client(ScenarioKind::Mixed, vec![known]);
        let mut own = Vec::new();
        for _ in 0..10_000 {
            let request = client.next();
            if let (Action::Update | Action::Delete, Some(id)) = (request.action, request.patient) {
                assert!(own.contains(&id), "{request:?}");
                if request.action == Action::Delete {
                    own.retain(|own| *own != id);
                }
            }
            let id = Uuid::now_v7();
            if client.record(&request, &created(id)).is_some() {
                own.push(id);
            }
        }
        assert!(!own.is_empty() && !own.contains(&known));
    }

    #[test]
    fn a_body_is_a_patient_and_emails_differ() {
        let mut client = client(ScenarioKind::Create, Vec::new());
        let mut emails = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let request = client.next();
            let body: serde_json::Value = serde_json::from_slice(&request.body.unwrap()).unwrap();
            assert!(body["dateOfBirth"].as_str().unwrap().parse::<chrono::NaiveDate>().is_ok(), "{body}");
            assert!(emails.insert(body["email"].to_string()));
        }
    }

    #[test]
    fn finds_the_next_page() {
        assert_eq!(next_page("</patients?cursor=x>; rel=\"next\""), Some("/patients?cursor=x"));
        assert_eq!(next_page("</patients>; rel=\"prev\""), None);
        assert_eq!(next_page("<http://elsewhere/patients>; rel=\"next\""), None);
    }
}
