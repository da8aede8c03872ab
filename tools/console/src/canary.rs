//! Measures the system during a fault: registers a patient every quarter of a second, records the backlog in outbox and
//! topic, and deletes the patients afterwards.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;

use crate::{
    app::App,
    client::{RequestError, ServiceRequest, ServiceResponse},
    expectations::{CATCH_UP_LIMIT, Measured},
    lab::{Lab, MAX_SECONDS, RunState},
    samples,
};

/// Time between two registrations.
const INTERVAL: Duration = Duration::from_millis(250);
/// Most registrations in flight.
const MAX_IN_FLIGHT: usize = 32;
/// Time for the agent to begin, and to report beyond the time of the fault itself.
const AGENT_LIMIT: Duration = Duration::from_secs(15);
/// An event that was sent is in the counters of every scrape after this time: of one that began after it was sent.
const SCRAPED_AFTER: Duration = Duration::from_secs(2);
/// Time for the registrations that are in flight at the end.
const LAST_LIMIT: Duration = Duration::from_secs(12);

/// The observations, shared with the registrations in flight.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Observations>>);

#[derive(Default)]
struct Observations {
    measured: Measured,
    in_flight: usize,
    /// Events sent, and those of them that were not read, when the fault began, by counters that begin with the console.
    before: Option<(f64, f64)>,
    /// When each registration was answered 201.
    registered: Vec<Instant>,
    /// Ids of the patients to delete.
    patients: Vec<String>,
}

impl Shared {
    fn with<T>(&self, change: impl FnOnce(&mut Observations) -> T) -> T {
        // Nothing panics while it is held.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Measures a run from its beginning to its end.
pub(crate) async fn measure(app: App, lab: Lab, run: String) {
    let shared = Shared::default();
    let outcome = follow(&app, &lab, &run, &shared).await;
    let waited = Instant::now();
    while shared.with(|observed| observed.in_flight > 0) && waited.elapsed() < LAST_LIMIT {
        smol::Timer::after(INTERVAL).await;
    }
    lab.note(&run, &shared.with(|observed| observed.measured.clone()));
    lab.end(&run, outcome.err());
    for patient in shared.with(|observed| std::mem::take(&mut observed.patients)) {
        let path = format!("/patients/{patient}");
        // A patient that cannot be deleted now stays; it is marked as a sample.
        let _ = app
            .call_patient_service(ServiceRequest { method: "DELETE", path: &path, headers: &[], body: Bytes::new() })
            .await;
    }
}

async fn follow(app: &App, lab: &Lab, run: &str, shared: &Shared) -> Result<(), String> {
    let begun = Instant::now();
    while lab.state(run) == Some(RunState::Waiting) {
        if begun.elapsed() > AGENT_LIMIT {
            return Err("the agent has not begun".to_owned());
        }
        smol::Timer::after(INTERVAL / 5).await;
    }
    let injected = Instant::now();
    while lab.state(run) == Some(RunState::Running) {
        if injected.elapsed() > Duration::from_secs(MAX_SECONDS) + AGENT_LIMIT {
            return Err("the agent has not reported the end of the fault".to_owned());
        }
        register(app, shared, true);
        record_backlog(app, shared);
        lab.note(run, &shared.with(|observed| observed.measured.clone()));
        smol::Timer::after(INTERVAL).await;
    }
    if lab.state(run) != Some(RunState::Healing) {
        return Ok(());
    }
    let healed = Instant::now();
    shared.with(|observed| observed.measured.healed = true);
    // Only a scrape that begins after the end of the fault counts.
    let scraped = app.map().version();
    loop {
        let has_answered = shared.with(|observed| observed.registered.last().is_some_and(|at| *at > healed));
        // One that is answered is enough. More would keep the outbox and the topic from being empty, on a busy machine for
        // as long as they come.
        if !has_answered {
            register(app, shared, false);
        }
        if has_answered && app.map().version() > scraped + 1 && app.map().is_drained(SystemTime::now()) {
            shared.with(|observed| observed.measured.caught_up = Some(healed.elapsed()));
            return Ok(());
        }
        if healed.elapsed() > CATCH_UP_LIMIT {
            shared.with(|observed| observed.measured.gave_up = true);
            return Ok(());
        }
        lab.note(run, &shared.with(|observed| observed.measured.clone()));
        smol::Timer::after(INTERVAL).await;
    }
}

/// Records the backlog.
fn record_backlog(app: &App, shared: &Shared) {
    let (outbox, sent, applied) = app.map().backlog();
    shared.with(|observed| {
        // analytics-service exports no lag while it is down: the lag is what was sent and not applied since then.
        let (sent_before, unread_before) = *observed.before.get_or_insert((sent, sent - applied));
        let unread = (sent - applied - unread_before).max(0.0);
        // patient-service counts its outbox every few seconds. What was registered before the last scrapes and is not sent
        // waits, too.
        let old = observed.registered.iter().filter(|at| at.elapsed() > SCRAPED_AFTER).count();
        let outbox = outbox.max(old as f64 - (sent - sent_before));
        observed.measured.most_in_outbox = observed.measured.most_in_outbox.max(outbox as u64);
        observed.measured.most_lag = observed.measured.most_lag.max(unread as u64);
    });
}

/// Registers a patient, unless too many are in flight. `counts`: the fault was in force when it was sent.
fn register(app: &App, shared: &Shared, counts: bool) {
    let has_room = shared.with(|observed| {
        let has_room = observed.in_flight < MAX_IN_FLIGHT;
        observed.in_flight += usize::from(has_room);
        has_room
    });
    if !has_room {
        return;
    }
    let (app, shared) = (app.clone(), shared.clone());
    runtime::spawn(async move {
        let body = serde_json::to_vec(&samples::with_prefix("Canary")).unwrap_or_default();
        let headers = [("content-type", "application/json")];
        let sent = Instant::now();
        let outgoing = ServiceRequest { method: "POST", path: "/patients", headers: &headers, body: body.into() };
        let answer = app.call_patient_service(outgoing).await;
        shared.with(|observed| {
            observed.in_flight -= 1;
            observed.add(&answer, sent.elapsed(), counts);
        });
    })
    .detach();
}

impl Observations {
    fn add(&mut self, answer: &Result<ServiceResponse, RequestError>, took: Duration, counts: bool) {
        let registered = answer.as_ref().ok().filter(|answer| answer.status == 201).map(ServiceResponse::json);
        if let Some(patient) = &registered {
            self.registered.push(Instant::now());
            self.patients.extend(patient["id"].as_str().map(str::to_owned));
        }
        if !counts {
            return;
        }
        let measured = &mut self.measured;
        match (&registered, answer) {
            (Some(patient), _) => {
                measured.registered += 1;
                measured.pending += u64::from(patient["billing"]["status"] == "PENDING");
            }
            (None, Ok(answer)) if answer.status == 503 => measured.unavailable += 1,
            (None, Ok(_)) => measured.other += 1,
            (None, Err(_)) => measured.unanswered += 1,
        }
        measured.slowest = measured.slowest.max(took);
    }
}
