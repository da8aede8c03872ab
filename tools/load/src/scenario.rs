//! What is asked of the service: a mix of actions on patients.
//!
//! Patients that were there before are only read. What a client updates and deletes it has made itself, so that no two
//! clients get in each other's way, and a registry in use keeps its data.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    options::Mix,
    target::{Answer, Connection, RequestError},
};

/// Own patients that a client remembers; older ones stay in the registry.
const REMEMBERED: usize = 10_000;
/// Patients in one part of the list when known ones are looked for.
const PART: usize = 1000;
/// Patients in one part of the list when the list is what is measured.
const LISTED: usize = 20;

/// What one request is for.
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

    /// Whether a status is the one that is wanted. Implementations differ in which 2xx they choose.
    pub(crate) fn wants(self, status: StatusCode) -> bool {
        status.is_success()
    }
}

/// What all clients of a run share.
#[derive(Debug)]
pub(crate) struct Scenario {
    what: What,
    /// Patients that may be read.
    known: Vec<Uuid>,
    /// Makes emails of this run differ from those of others.
    run: u64,
}

#[derive(Debug)]
enum What {
    Mix(Mix),
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
struct HasId {
    id: Uuid,
}

impl Scenario {
    /// GET of one path, over and over.
    pub(crate) fn path(path: String) -> Self {
        Self { what: What::Path(path), known: Vec::new(), run: 0 }
    }

    /// A mix of actions. Looks for patients that are there, at most `most`.
    ///
    /// # Errors
    /// If the service does not answer the list as the contract says.
    pub(crate) async fn mix(mix: Mix, connection: &mut Connection, most: usize) -> Result<Self, String> {
        let known = if matches!(mix, Mix::Mixed | Mix::Read) { find(connection, most).await? } else { Vec::new() };
        Ok(Self { what: What::Mix(mix), known, run: fastrand::u64(..) })
    }

    /// How many patients were found.
    pub(crate) fn known(&self) -> usize {
        self.known.len()
    }
}

/// Ids of patients from the list, part by part as far as it has parts.
async fn find(connection: &mut Connection, most: usize) -> Result<Vec<Uuid>, String> {
    let mut found = Vec::new();
    let mut path = Some(format!("/patients?limit={PART}"));
    while let Some(current) = path.take().filter(|_| found.len() < most) {
        let failed = |why: String| format!("GET {current}: {why}");
        let answer = connection.send(Method::GET, &current, None).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        if !answer.status.is_success() {
            return Err(failed(format!("status {}", answer.status)));
        }
        let part: Vec<HasId> = serde_json::from_slice(&answer.body)
            .map_err(|error| failed(format!("expected an array of patients, each with an id: {error}")))?;
        found.extend(part.into_iter().map(|patient| patient.id));
        path = answer.link.as_deref().and_then(next).map(str::to_owned);
    }
    found.truncate(most);
    Ok(found)
}

/// The path of the next part in a `Link` header.
fn next(link: &str) -> Option<&str> {
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    parameters.contains("rel=\"next\"").then_some(target).filter(|target| target.starts_with('/'))
}

/// One of the clients: chooses its next request and learns from the answers.
#[derive(Debug)]
pub(crate) struct Client {
    scenario: Arc<Scenario>,
    number: usize,
    made: u64,
    /// Patients of its own, oldest first.
    own: VecDeque<Uuid>,
    random: fastrand::Rng,
}

impl Client {
    pub(crate) fn new(scenario: Arc<Scenario>, number: usize) -> Self {
        Self { scenario, number, made: 0, own: VecDeque::new(), random: fastrand::Rng::new() }
    }

    /// The next request.
    pub(crate) fn next(&mut self) -> Request {
        let wanted = match &self.scenario.what {
            What::Path(path) => return plain(Action::Get, path.clone(), None),
            What::Mix(Mix::Mixed) => match self.random.u8(0..100) {
                0..40 => Action::Read,
                40..55 => Action::List,
                55..80 => Action::Create,
                80..92 => Action::Update,
                _ => Action::Delete,
            },
            What::Mix(Mix::Create) => Action::Create,
            What::Mix(Mix::Read) => Action::Read,
            What::Mix(Mix::List) => Action::List,
            What::Mix(Mix::Update) => Action::Update,
            What::Mix(Mix::Delete) => Action::Delete,
        };
        // Where there is no patient yet, one is made.
        match wanted {
            Action::List => plain(Action::List, format!("/patients?limit={LISTED}"), None),
            Action::Read => match self.any() {
                Some(id) => plain(Action::Read, format!("/patients/{id}"), Some(id)),
                None => self.create(),
            },
            Action::Update => match self.own.pop_front() {
                Some(id) => self.write(Action::Update, Method::PUT, format!("/patients/{id}"), Some(id)),
                None => self.create(),
            },
            Action::Delete => match self.own.pop_front() {
                Some(id) => {
                    Request { method: Method::DELETE, ..plain(Action::Delete, format!("/patients/{id}"), Some(id)) }
                }
                None => self.create(),
            },
            Action::Create | Action::Get => self.create(),
        }
    }

    /// The patients that this client should have before it begins, of all that the clients should have together.
    pub(crate) fn share(&self, own: usize, clients: usize) -> usize {
        let is_wanted = matches!(self.scenario.what, What::Mix(Mix::Update | Mix::Delete));
        if is_wanted { own.div_ceil(clients) } else { 0 }
    }

    /// How many patients of its own it knows.
    pub(crate) fn own(&self) -> usize {
        self.own.len()
    }

    /// Remembers what an answer says; gives the patient that it made.
    pub(crate) fn learn(&mut self, request: &Request, answer: &Result<Answer, RequestError>) -> Option<Uuid> {
        let answer = answer.as_ref().ok().filter(|answer| answer.status.is_success());
        match (request.action, answer) {
            (Action::Create, Some(answer)) => {
                let HasId { id } = serde_json::from_slice(&answer.body).ok()?;
                self.own.push_back(id);
                if self.own.len() > REMEMBERED {
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

    /// A request that makes a patient.
    pub(crate) fn create(&mut self) -> Request {
        self.made += 1;
        self.write(Action::Create, Method::POST, "/patients".to_owned(), None)
    }

    fn write(&mut self, action: Action, method: Method, path: String, patient: Option<Uuid>) -> Request {
        let random = &mut self.random;
        let mut pick = |words: &'static [&'static str]| words[random.usize(..words.len())];
        let (first, last, street) = (pick(&FIRST_NAMES), pick(&LAST_NAMES), pick(&STREETS));
        let email = match patient {
            None => format!("{:016x}.{}.{}@example.org", self.scenario.run, self.number, self.made),
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

    /// A patient that may be read.
    fn any(&mut self) -> Option<Uuid> {
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

fn plain(action: Action, path: String, patient: Option<Uuid>) -> Request {
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

    use super::*;

    fn client(mix: Mix, known: Vec<Uuid>) -> Client {
        Client::new(Arc::new(Scenario { what: What::Mix(mix), known, run: 7 }), 3)
    }

    fn created(id: Uuid) -> Result<Answer, RequestError> {
        let body = format!("{{\"id\":\"{id}\",\"name\":\"x\"}}").into();
        Ok(Answer { status: StatusCode::CREATED, link: None, body })
    }

    #[test]
    fn the_mix_is_as_documented() {
        let mut client = client(Mix::Mixed, vec![Uuid::nil()]);
        let mut counts = BTreeMap::<_, usize>::new();
        let rounds = 100_000;
        for _ in 0..rounds {
            let request = client.next();
            *counts.entry(request.action).or_default() += 1;
            client.learn(&request, &created(Uuid::now_v7()));
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
        let mut client = client(Mix::Mixed, vec![known]);
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
            if client.learn(&request, &created(id)).is_some() {
                own.push(id);
            }
        }
        assert!(!own.is_empty() && !own.contains(&known));
    }

    #[test]
    fn a_body_is_a_patient_and_emails_differ() {
        let mut client = client(Mix::Create, Vec::new());
        let mut emails = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let request = client.next();
            let body: serde_json::Value = serde_json::from_slice(&request.body.unwrap()).unwrap();
            assert!(body["dateOfBirth"].as_str().unwrap().parse::<chrono::NaiveDate>().is_ok(), "{body}");
            assert!(emails.insert(body["email"].to_string()));
        }
    }

    #[test]
    fn finds_the_next_part() {
        assert_eq!(next("</patients?cursor=x>; rel=\"next\""), Some("/patients?cursor=x"));
        assert_eq!(next("</patients>; rel=\"prev\""), None);
        assert_eq!(next("<http://elsewhere/patients>; rel=\"next\""), None);
    }
}
