//! The agent of the console's lab: polls the console for work, and injects faults into the parts of this checkout's system.
//!
//! It listens on no port. It knows a fixed set of faults, each of which a timer here ends, also if the console is gone; when it
//! stops or starts, it resumes whatever is paused. Databases and brokers that the user has provided are excluded.

use std::{
    collections::VecDeque,
    env,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, anyhow};
use runtime::Shutdown;
use serde_json::{Value as Json, json};
use smol::{channel, future::or};
use surf::http::Method;
use testbed::{Signal, http::Client};

use crate::{
    agent_process::TOKEN,
    backend, dead_letters,
    docker::Docker,
    lock::SystemLock,
    native,
    patient_dead_letters::{self, PatientDeadLetter},
    settings::Settings,
};

/// The longest fault, whatever the console says.
const MAX_SECONDS: u64 = 60;
/// Timeout of a poll; the console responds after some seconds if there is no work.
const POLL_TIMEOUT: Duration = Duration::from_secs(15);
/// Reports that are kept while the console is unavailable.
const MAX_REPORTS: usize = 16;
/// Dead letters of patient-service in a list.
const MAX_LETTERS: usize = 100;
/// Pause while the console is unavailable.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A slow part is paused for this long, then runs for this long, and so on.
const SLOW_PERIOD: Duration = Duration::from_millis(100);
/// The holder of the lock while a service is killed, and while it is started again.
const LAB: &str = "The lab of the console";
/// The console's names of the broker and of PostgreSQL.
const BROKER: &str = "kafka";
const POSTGRES: &str = "postgres";

/// The parts of the system.
enum Parts {
    Native(Settings),
    Docker(Docker),
}

/// The part that a fault is injected into.
enum Target<'a> {
    Native(&'a Settings, &'a str),
    /// With the ids of its containers.
    Docker(&'a Docker, &'a str, Vec<String>),
}

/// The current fault.
struct Fault {
    part: String,
    /// Ends it early.
    resume: channel::Sender<()>,
}

/// Polls for work until it is stopped.
pub(crate) async fn run(settings: &Settings) -> Result<()> {
    let token = env::var(TOKEN).map_err(|_| anyhow!("{TOKEN} is not set; `up` starts the agent."))?;
    let shutdown = Shutdown::new();
    shutdown.trigger_on_signals()?;
    let parts = Arc::new(match backend::docker_of_checkout().await? {
        Some(docker) => Parts::Docker(docker),
        None => Parts::Native(settings.clone()),
    });
    parts.resume_all().await;
    let client = Client::new(format!("127.0.0.1:{}", settings.console_port)).with_timeout(POLL_TIMEOUT);
    let authorization = format!("Bearer {token}");
    let fault = Arc::new(Mutex::new(None::<Fault>));
    let (reports, new_reports) = channel::bounded::<Json>(16);
    let work = async {
        // The reports that no response has acknowledged, in their order.
        let mut unacknowledged = VecDeque::<Json>::new();
        loop {
            let poll = json!({ "parts": parts.offered(), "excluded": parts.excluded(), "reports": unacknowledged });
            let headers = [("authorization", authorization.as_str())];
            let response = async { Ok(client.send(Method::Post, "/agent/work", &headers, Some(&poll)).await) };
            // A new report does not wait for work.
            match or(async { Err(new_reports.recv().await.unwrap_or_default()) }, response).await {
                Err(newer) => {
                    // The poll may have been received; the console ignores a report that comes twice.
                    unacknowledged.push_back(newer);
                    if unacknowledged.len() > MAX_REPORTS {
                        unacknowledged.pop_front();
                    }
                    continue;
                }
                Ok(Ok(response)) if response.status == 200 => {
                    unacknowledged.clear();
                    begin(settings, &parts, &fault, &response.json(), &reports);
                }
                Ok(Ok(response)) if response.status == 204 => unacknowledged.clear(),
                // The console is unavailable, or another one; the current fault ends by itself.
                Ok(_) => drop(smol::Timer::after(RETRY_PAUSE).await),
            }
        }
    };
    shutdown.run_until_stopped::<()>(work).await;
    parts.resume_all().await;
    Ok(())
}

/// Sends a dead letter again: that of a record, `partition:offset`, or one of patient-service by its id.
async fn resend(settings: &Settings, letter: &str) -> Result<()> {
    if patient_dead_letters::is_id(letter) {
        return patient_dead_letters::resend_one(settings, letter).await;
    }
    let position =
        letter.split_once(':').and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    let (partition, offset) = position.ok_or_else(|| anyhow!("{letter:?} is not the position of a record."))?;
    dead_letters::resend_from(settings, partition, offset).await
}

/// Starts a piece of work, or ends the current fault.
fn begin(
    settings: &Settings,
    parts: &Arc<Parts>,
    fault: &Arc<Mutex<Option<Fault>>>,
    work: &Json,
    reports: &channel::Sender<Json>,
) {
    let text = |name: &str| work[name].as_str().unwrap_or_default().to_owned();
    let (run, part, verb) = (text("run"), text("part"), text("verb"));
    let seconds = work["seconds"].as_u64().unwrap_or(1).clamp(1, MAX_SECONDS);
    let report = {
        let (run, reports) = (run.clone(), reports.clone());
        move |state: &str, detail: Option<String>| {
            let _ = reports.try_send(json!({ "run": run, "state": state, "detail": detail }));
        }
    };
    if verb == "resend" {
        let settings = settings.clone();
        runtime::spawn(async move {
            eprintln!("resend {part}");
            match resend(&settings, &part).await {
                Ok(()) => report("healed", None),
                Err(error) => report("failed", Some(error.to_string())),
            }
        })
        .detach();
        return;
    }
    if verb == "list" {
        let (settings, reports) = (settings.clone(), reports.clone());
        runtime::spawn(async move {
            match patient_dead_letters::list(&settings).await {
                Ok(letters) => {
                    let letters: Vec<_> = letters.iter().take(MAX_LETTERS).map(PatientDeadLetter::to_json).collect();
                    let _ = reports.try_send(json!({ "run": run, "state": "healed", "letters": letters }));
                }
                Err(error) => report("failed", Some(error.to_string())),
            }
        })
        .detach();
        return;
    }
    let mut current = fault.lock().unwrap_or_else(PoisonError::into_inner);
    if verb == "resume" {
        if let Some(fault) = current.as_ref().filter(|fault| fault.part == part) {
            let _ = fault.resume.try_send(());
        }
        return;
    }
    let is_offered = parts
        .offered()
        .iter()
        .any(|one| one["id"] == part && one["verbs"].as_array().is_some_and(|all| all.contains(&json!(verb))));
    if !is_offered || current.is_some() {
        report("failed", Some("this cannot be done now".to_owned()));
        return;
    }
    let (resume, resumed) = channel::bounded(1);
    *current = Some(Fault { part: part.clone(), resume });
    drop(current);
    let (parts, fault) = (parts.clone(), fault.clone());
    runtime::spawn(async move {
        eprintln!("{verb} {part} for {seconds} s");
        let end = async {
            smol::Timer::after(Duration::from_secs(seconds)).await;
        };
        let resumed = async {
            let _ = resumed.recv().await;
        };
        let outcome = parts.inject(&part, &verb, || report("injected", None), or(end, resumed)).await;
        *fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match outcome {
            Ok(()) => report("healed", None),
            Err(error) => {
                eprintln!("{verb} {part}: {error}");
                report("failed", Some(error.to_string()));
            }
        }
    })
    .detach();
}

impl Parts {
    /// The parts with the faults that can be injected.
    fn offered(&self) -> Vec<Json> {
        let with = |id: &str, verbs: &[&str]| json!({ "id": id, "verbs": verbs });
        let mut parts: Vec<_> =
            native::SERVICES.iter().map(|service| with(service, &["kill", "pause", "slow"])).collect();
        match self {
            Self::Native(settings) => {
                parts.extend(settings.kafka.is_none().then(|| with(BROKER, &["pause", "slow"])));
                parts.extend(settings.database_url.is_none().then(|| with(POSTGRES, &["pause", "slow"])));
            }
            Self::Docker(_) => parts.extend([with(BROKER, &["pause"]), with("patient-db", &["pause"])]),
        }
        parts
    }

    /// The parts that are excluded, with the reason.
    fn excluded(&self) -> Vec<Json> {
        let Self::Native(settings) = self else { return Vec::new() };
        let given = |id: &str, by: &str| json!({ "id": id, "why": format!("given by {by}") });
        let broker = settings.kafka.is_some().then(|| given(BROKER, "KAFKA_BOOTSTRAP_SERVERS"));
        let database = settings.database_url.is_some().then(|| given(POSTGRES, "DATABASE_URL"));
        broker.into_iter().chain(database).collect()
    }

    /// Injects a fault into a part until `end`, and ends it whatever happens in between.
    async fn inject(
        &self,
        part: &str,
        verb: &str,
        injected: impl FnOnce(),
        end: impl Future<Output = ()>,
    ) -> Result<()> {
        let part = &self.target(part).await?;
        match verb {
            "kill" => {
                // An `up` at work may have passed this service, and would not start it. One that begins now does.
                let lock = SystemLock::take(LAB)?;
                part.kill().await?;
                drop(lock);
                injected();
                end.await;
                // Two starts at once would be two processes.
                let _lock = SystemLock::wait(LAB).await?;
                part.start().await
            }
            "pause" => {
                let paused = part.pause().await;
                if paused.is_ok() {
                    injected();
                    end.await;
                }
                part.resume().await.and(paused)
            }
            "slow" => {
                let cycles = async {
                    loop {
                        if let failed @ Err(_) = part.pause_and_resume().await {
                            return failed;
                        }
                    }
                };
                injected();
                let outcome: Result<()> = or(cycles, async {
                    end.await;
                    Ok(())
                })
                .await;
                part.resume().await.and(outcome)
            }
            _ => Err(anyhow!("{verb} is none of kill, pause and slow")),
        }
    }

    /// A part, with its containers: Compose takes seconds to list them, on a busy machine longer than a period of a slow part.
    async fn target<'a>(&'a self, part: &'a str) -> Result<Target<'a>> {
        Ok(match self {
            Self::Native(settings) => Target::Native(settings, part),
            Self::Docker(docker) => Target::Docker(docker, part, docker.ids_of(part).await?),
        })
    }

    /// Resumes whatever is paused, such as after an agent that was killed. Running parts are not affected.
    async fn resume_all(&self) {
        match self {
            Self::Native(settings) => {
                for part in native::SERVICES.into_iter().chain([BROKER, POSTGRES]) {
                    // A part that is stopped needs no signal.
                    let _ = native::signal(settings, part, Signal::CONT);
                }
            }
            Self::Docker(docker) => drop(docker.unpause_all().await),
        }
    }
}

impl Target<'_> {
    /// Pauses it for one period and resumes it for another.
    async fn pause_and_resume(&self) -> Result<()> {
        self.pause().await?;
        smol::Timer::after(SLOW_PERIOD).await;
        self.resume().await?;
        smol::Timer::after(SLOW_PERIOD).await;
        Ok(())
    }

    async fn kill(&self) -> Result<()> {
        match self {
            Self::Native(settings, part) => native::kill(settings, part).await,
            Self::Docker(docker, part, _) => docker.kill(part).await,
        }
    }

    async fn start(&self) -> Result<()> {
        match self {
            Self::Native(settings, part) => native::start_service(settings, part).await,
            Self::Docker(_, _, ids) => Docker::control(ids, "start").await,
        }
    }

    async fn pause(&self) -> Result<()> {
        match self {
            Self::Native(settings, part) => native::signal(settings, part, Signal::STOP),
            Self::Docker(_, _, ids) => Docker::control(ids, "pause").await,
        }
    }

    async fn resume(&self) -> Result<()> {
        match self {
            Self::Native(settings, part) => native::signal(settings, part, Signal::CONT),
            Self::Docker(_, _, ids) => Docker::control(ids, "unpause").await,
        }
    }
}
