//! Measures the system during a fault: registers a patient every quarter of a second, looks at what waits where, and takes
//! the patients away again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;

use crate::{
    app::App,
    client::{Answer, RequestError, ServiceRequest},
    expectations::{CATCH_UP_LIMIT, Measured},
    lab::{Lab, MAX_SECONDS, RunState},
    samples,
};

/// Time between two registrations.
const PACE: Duration = Duration::from_millis(250);
/// Registrations under way at most: while nothing answers, more would only wait.
const MAX_WAITING: usize = 32;
/// Time for the agent to begin, and to report beyond the time of the fault itself.
const AGENT_LIMIT: Duration = Duration::from_secs(15);
/// Time for the last registrations, which may have waited for the fault to end.
const LAST_LIMIT: Duration = Duration::from_secs(12);

/// What has been measured, shared with the registrations under way.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Noted>>);

#[derive(Default)]
struct Noted {
    measured: Measured,
    waiting: usize,
    /// Events sent and not read when the fault began, by counters that begin with the console.
    unread_before: Option<f64>,
    /// Patients to take away.
    patients: Vec<String>,
    /// When the last registration was answered 201.
    last_registered: Option<Instant>,
}

impl Notes {
    fn with<T>(&self, change: impl FnOnce(&mut Noted) -> T) -> T {
        // Nothing panics while it is held.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Measures a run from its beginning to its end.
pub(crate) async fn measure(app: App, lab: Lab, run: String) {
    let notes = Notes::default();
    let outcome = follow(&app, &lab, &run, &notes).await;
    let waited = Instant::now();
    while notes.with(|noted| noted.waiting > 0) && waited.elapsed() < LAST_LIMIT {
        smol::Timer::after(PACE).await;
    }
    lab.note(&run, &notes.with(|noted| noted.measured.clone()));
    lab.end(&run, outcome.err());
    for patient in notes.with(|noted| std::mem::take(&mut noted.patients)) {
        let path = format!("/patients/{patient}");
        // What cannot be taken away now is marked as a sample, and stays.
        let _ =
            app.ask_patients(ServiceRequest { method: "DELETE", path: &path, headers: &[], body: Bytes::new() }).await;
    }
}

async fn follow(app: &App, lab: &Lab, run: &str, notes: &Notes) -> Result<(), String> {
    let begun = Instant::now();
    while lab.state(run) == Some(RunState::Waiting) {
        if begun.elapsed() > AGENT_LIMIT {
            return Err("the agent has not begun".to_owned());
        }
        smol::Timer::after(PACE / 5).await;
    }
    let injected = Instant::now();
    while lab.state(run) == Some(RunState::Running) {
        if injected.elapsed() > Duration::from_secs(MAX_SECONDS) + AGENT_LIMIT {
            return Err("the agent has not told the end of the fault".to_owned());
        }
        register(app, notes, true);
        look(app, notes);
        lab.note(run, &notes.with(|noted| noted.measured.clone()));
        smol::Timer::after(PACE).await;
    }
    if lab.state(run) != Some(RunState::Healing) {
        return Ok(());
    }
    let healed = Instant::now();
    notes.with(|noted| noted.measured.healed = true);
    // What a scrape told before says nothing of now.
    let scraped = app.map().version();
    loop {
        register(app, notes, false);
        let has_answered = notes.with(|noted| noted.last_registered.is_some_and(|at| at > healed));
        if has_answered && app.map().version() > scraped + 1 && app.map().is_drained(SystemTime::now()) {
            notes.with(|noted| noted.measured.caught_up = Some(healed.elapsed()));
            return Ok(());
        }
        if healed.elapsed() > CATCH_UP_LIMIT {
            notes.with(|noted| noted.measured.gave_up = true);
            return Ok(());
        }
        lab.note(run, &notes.with(|noted| noted.measured.clone()));
        smol::Timer::after(PACE).await;
    }
}

/// Notes what waits now.
fn look(app: &App, notes: &Notes) {
    let (outbox, sent, applied) = app.map().waiting();
    notes.with(|noted| {
        // An analytics-service that is away tells no lag; what was sent since then waits for it.
        let before = *noted.unread_before.get_or_insert(sent - applied);
        let unread = (sent - applied - before).max(0.0);
        noted.measured.most_in_outbox = noted.measured.most_in_outbox.max(outbox as u64);
        noted.measured.most_lag = noted.measured.most_lag.max(unread as u64);
    });
}

/// Registers a patient, unless too many wait for their answer. `counts`: the fault was in force when it was sent.
fn register(app: &App, notes: &Notes, counts: bool) {
    let has_room = notes.with(|noted| {
        let has_room = noted.waiting < MAX_WAITING;
        noted.waiting += usize::from(has_room);
        has_room
    });
    if !has_room {
        return;
    }
    let (app, notes) = (app.clone(), notes.clone());
    runtime::spawn(async move {
        let body = serde_json::to_vec(&samples::named("Canary")).unwrap_or_default();
        let headers = [("content-type", "application/json")];
        let sent = Instant::now();
        let outgoing = ServiceRequest { method: "POST", path: "/patients", headers: &headers, body: body.into() };
        let answer = app.ask_patients(outgoing).await;
        notes.with(|noted| {
            noted.waiting -= 1;
            noted.add(&answer, sent.elapsed(), counts);
        });
    })
    .detach();
}

impl Noted {
    fn add(&mut self, answer: &Result<Answer, RequestError>, took: Duration, counts: bool) {
        let registered = answer.as_ref().ok().filter(|answer| answer.status == 201).map(Answer::json);
        if let Some(patient) = &registered {
            self.last_registered = Some(Instant::now());
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
