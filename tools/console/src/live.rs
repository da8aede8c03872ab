//! The live page: a snapshot and then what changes, as server-sent events.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Map as Object, Value as Json, json};
use smol::future::or;
use web::EventSender;

use crate::{
    app::App,
    journey::{self, Journey, Operation, Summary},
    load::LoadBody,
    store::TraceId,
    time::iso,
};

/// Changes are told so often at most.
const PACE: Duration = Duration::from_millis(250);
/// A stream says so often at least that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// Streams at most: one for each open tab.
const MAX_STREAMS: usize = 32;
/// Journeys of a list at most, unless fewer are asked for.
pub(crate) const MAX_JOURNEYS: usize = 100;

/// What a page wants to see besides the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Map,
    Journeys { errors_only: bool },
    Journey(TraceId),
    Lab,
}

/// A place among the streams, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    /// None if each is taken.
    pub(crate) fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(taken.clone());
        (taken.fetch_add(1, Ordering::Relaxed) < MAX_STREAMS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends until the page has gone or the console stops.
pub(crate) async fn send(app: App, view: View, events: EventSender, place: Place) {
    let _place = place;
    let shutdown = app.shutdown().clone();
    let mut stream = Stream { app, view, sequence: 0, map: 0, journeys: HashMap::new(), journey: None, lab: None };
    shutdown.run_until_stopped(or(events.closed(), stream.run(&events))).await;
}

/// The newest journeys, the newest first.
pub(crate) fn journeys(app: &App, limit: usize, errors_only: bool) -> Vec<(TraceId, Summary)> {
    let facts = app.map().facts(SystemTime::now());
    app.store().newest(limit, |id, trace| {
        let summary = journey::summary(id, trace, &[], &facts);
        let is_request = summary.kind != Operation::Other || summary.is_answered();
        (is_request && (summary.error || !errors_only)).then_some((*id, summary))
    })
}

/// The lab, with the load that there is and the one before.
pub(crate) fn lab(app: &App) -> Json {
    let mut body = json!(app.lab().body());
    let load = app.load().body();
    let (load, last) = if load.as_ref().is_some_and(LoadBody::is_running) { (load, None) } else { (None, load) };
    body["load"] = json!(load);
    body["last_load"] = json!(last);
    body
}

/// What one page has been told.
struct Stream {
    app: App,
    view: View,
    sequence: u64,
    map: u64,
    journeys: HashMap<TraceId, Summary>,
    journey: Option<Journey>,
    lab: Option<Json>,
}

impl Stream {
    async fn run(&mut self, events: &EventSender) {
        let mut last = Instant::now();
        loop {
            let mut body = self.news().await;
            let is_first = self.sequence == 0;
            if is_first || !body.is_empty() || last.elapsed() > SIGN_OF_LIFE {
                self.sequence += 1;
                last = Instant::now();
                body.insert("seq".to_owned(), self.sequence.into());
                body.insert("now".to_owned(), iso(SystemTime::now()).into());
                let name = if is_first { "snapshot" } else { "delta" };
                if !events.send(name, &Json::Object(body).to_string()).await {
                    return;
                }
            }
            smol::Timer::after(PACE).await;
        }
    }

    /// What the page has not been told yet.
    async fn news(&mut self) -> Object<String, Json> {
        let mut news = Object::new();
        let mut tell = |name: &str, value: Json| news.insert(name.to_owned(), value);
        let is_first = self.sequence == 0;
        let version = self.app.map().version();
        if is_first || self.map != version {
            self.map = version;
            tell("map", json!(self.app.map().body(SystemTime::now())));
        }
        match self.view {
            View::Map => {}
            View::Lab => {
                let now = lab(&self.app);
                if self.lab.as_ref() != Some(&now) {
                    tell("lab", now.clone());
                    self.lab = Some(now);
                }
            }
            View::Journeys { errors_only } => {
                let now = journeys(&self.app, MAX_JOURNEYS, errors_only);
                let changed: Vec<_> =
                    now.iter().filter(|(id, one)| self.journeys.get(id) != Some(one)).map(|(_, one)| one).collect();
                if is_first || !changed.is_empty() {
                    tell("journeys", json!(changed));
                }
                let ids: HashSet<_> = now.iter().map(|(id, _)| *id).collect();
                let gone: Vec<_> =
                    self.journeys.keys().filter(|id| !ids.contains(*id)).map(|id| journey::hex(id)).collect();
                if !gone.is_empty() {
                    tell("gone", json!(gone));
                }
                self.journeys = now.into_iter().collect();
            }
            View::Journey(id) => {
                let mut now = self.app.journey(&id);
                if let Some(journey) = &now
                    && journey.patient_to_read_back().is_some()
                {
                    self.app.read_back(&id, journey).await;
                    now = self.app.journey(&id);
                }
                if is_first || now != self.journey {
                    tell("journey", json!(now));
                    self.journey = now;
                }
            }
        }
        news
    }
}
