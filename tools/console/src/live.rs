//! The live page: a snapshot and then what changes, as server-sent events.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Map as Object, Value as Json, json};
use smol::future::or;
use web::{EventSender, StreamSlot};

use crate::{
    app::App,
    journey::{self, Journey, Operation, Summary},
    load::LoadBody,
    store::TraceId,
    time::iso,
};

/// Shortest time between two events of a stream.
const UPDATE_INTERVAL: Duration = Duration::from_millis(250);
/// Longest time between two events of a stream, so that the page knows that it is alive.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Journeys in a list without `limit`.
pub(crate) const MAX_JOURNEYS: usize = 100;

/// What a page shows besides the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Map,
    Journeys { errors_only: bool },
    Journey(TraceId),
    Lab,
}

/// Sends until the page disconnects or the console stops.
pub(crate) async fn send(app: App, view: View, events: EventSender, slot: StreamSlot) {
    let _slot = slot;
    let shutdown = app.shutdown().clone();
    let mut stream = Stream { app, view, sequence: 0, map: 0, journeys: HashMap::new(), journey: None, lab: None };
    shutdown.run_until_stopped(or(events.closed(), stream.run(&events))).await;
}

/// The newest journeys, the newest first.
pub(crate) fn journeys(app: &App, limit: usize, errors_only: bool) -> Vec<(TraceId, Summary)> {
    let system = app.map().system_status(SystemTime::now());
    app.store().newest(limit, |id, trace| {
        let summary = journey::summary(id, trace, &[], &system);
        let is_request = summary.kind != Operation::Other || summary.is_answered();
        (is_request && (summary.error || !errors_only)).then_some((*id, summary))
    })
}

/// The lab, with the current load or the last one.
pub(crate) fn lab(app: &App) -> Json {
    let mut body = json!(app.lab().body());
    let load = app.load().body();
    let (load, last) = if load.as_ref().is_some_and(LoadBody::is_running) { (load, None) } else { (None, load) };
    body["load"] = json!(load);
    body["last_load"] = json!(last);
    body
}

/// The state of a stream: what its page has received.
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
            let mut body = self.changes().await;
            let is_first = self.sequence == 0;
            if is_first || !body.is_empty() || last.elapsed() > HEARTBEAT_INTERVAL {
                self.sequence += 1;
                last = Instant::now();
                body.insert("seq".to_owned(), self.sequence.into());
                body.insert("now".to_owned(), iso(SystemTime::now()).into());
                let name = if is_first { "snapshot" } else { "delta" };
                if !events.send(name, &Json::Object(body).to_string()).await {
                    return;
                }
            }
            smol::Timer::after(UPDATE_INTERVAL).await;
        }
    }

    /// What has changed since the last event.
    async fn changes(&mut self) -> Object<String, Json> {
        let mut changes = Object::new();
        let mut add = |name: &str, value: Json| changes.insert(name.to_owned(), value);
        let is_first = self.sequence == 0;
        let version = self.app.map().version();
        if is_first || self.map != version {
            self.map = version;
            add("map", json!(self.app.map().body(SystemTime::now())));
        }
        match self.view {
            View::Map => {}
            View::Lab => {
                let now = lab(&self.app);
                if self.lab.as_ref() != Some(&now) {
                    add("lab", now.clone());
                    self.lab = Some(now);
                }
            }
            View::Journeys { errors_only } => {
                let now = journeys(&self.app, MAX_JOURNEYS, errors_only);
                let changed: Vec<_> =
                    now.iter().filter(|(id, one)| self.journeys.get(id) != Some(one)).map(|(_, one)| one).collect();
                if is_first || !changed.is_empty() {
                    add("journeys", json!(changed));
                }
                let ids: HashSet<_> = now.iter().map(|(id, _)| *id).collect();
                let gone: Vec<_> =
                    self.journeys.keys().filter(|id| !ids.contains(*id)).map(|id| journey::hex(id)).collect();
                if !gone.is_empty() {
                    add("gone", json!(gone));
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
                    add("journey", json!(now));
                    self.journey = now;
                }
            }
        }
        changes
    }
}
