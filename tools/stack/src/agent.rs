//! The hands of the console's lab: asks it for work and does that to the parts of the system that this checkout runs.
//!
//! It listens nowhere. What it does are closed verbs, each for a bounded time, which a timer here ends although the console
//! be gone; and whatever stands still when the agent stops or starts is woken. Databases and brokers that were given from
//! outside are left alone.

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
    native,
    patient_dead_letters::{self, PatientDeadLetter},
    settings::Settings,
};

/// A fault lasts so long at most, whatever is asked for.
const MAX_SECONDS: u64 = 60;
/// Time for an answer; a question without work is answered after some seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Reports that are kept while the console is away.
const MAX_REPORTS: usize = 16;
/// Dead letters of patient-service in a list.
const MAX_LETTERS: usize = 100;
/// Pause while the console is away.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// A slow part stands still for so long, and then runs for so long.
const SLOW_TURN: Duration = Duration::from_millis(100);
/// The parts by the names that the console has for them: the broker and PostgreSQL besides the services.
const BROKER: &str = "kafka";
const POSTGRES: &str = "postgres";

/// What can be done to the parts.
enum Parts {
    Native(Settings),
    Docker(Docker),
}

/// A part to which something is done.
enum Target<'a> {
    Native(&'a Settings, &'a str),
    /// With the ids of its containers.
    Docker(&'a Docker, &'a str, Vec<String>),
}

/// A fault under way.
struct Fault {
    part: String,
    /// Ends it before its time.
    resume: channel::Sender<()>,
}

/// Asks for work until it is stopped.
pub(crate) async fn run(settings: &Settings) -> Result<()> {
    let token = env::var(TOKEN).map_err(|_| anyhow!("{TOKEN} is not set; `up` starts the agent."))?;
    let shutdown = Shutdown::new();
    shutdown.trigger_on_signals()?;
    let parts = Arc::new(match backend::docker_of_checkout().await? {
        Some(docker) => Parts::Docker(docker),
        None => Parts::Native(settings.clone()),
    });
    parts.wake_all().await;
    let client = Client::new(format!("127.0.0.1:{}", settings.console_port)).with_timeout(ANSWER_LIMIT);
    let authorization = format!("Bearer {token}");
    let fault = Arc::new(Mutex::new(None::<Fault>));
    let (reports, news) = channel::bounded::<Json>(16);
    let work = async {
        // Those that no answer has acknowledged, in their order.
        let mut unacknowledged = VecDeque::<Json>::new();
        loop {
            let question = json!({ "parts": parts.offered(), "excluded": parts.excluded(), "reports": unacknowledged });
            let headers = [("authorization", authorization.as_str())];
            let ask = async { Ok(client.send(Method::Post, "/agent/work", &headers, Some(&question)).await) };
            // What there is to tell does not wait for work.
            match or(async { Err(news.recv().await.unwrap_or_default()) }, ask).await {
                Err(newer) => {
                    // The question may have been received; the console takes a report twice without harm.
                    unacknowledged.push_back(newer);
                    if unacknowledged.len() > MAX_REPORTS {
                        unacknowledged.pop_front();
                    }
                    continue;
                }
                Ok(Ok(answer)) if answer.status == 200 => {
                    unacknowledged.clear();
                    begin(settings, &parts, &fault, &answer.json(), &reports);
                }
                Ok(Ok(answer)) if answer.status == 204 => unacknowledged.clear(),
                // The console is away, or another one; what is under way ends by itself.
                Ok(_) => drop(smol::Timer::after(AWAY_PAUSE).await),
            }
        }
    };
    shutdown.run_until_stopped::<()>(work).await;
    parts.wake_all().await;
    Ok(())
}

/// Sends a dead letter again: that of a record, `partition:offset`, or one of patient-service by its id.
async fn resend(settings: &Settings, letter: &str) -> Result<()> {
    if patient_dead_letters::is_id(letter) {
        return patient_dead_letters::resend_one(settings, letter).await;
    }
    let place =
        letter.split_once(':').and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    let (partition, offset) = place.ok_or_else(|| anyhow!("{letter:?} is not the place of a record."))?;
    dead_letters::resend_from(settings, partition, offset).await
}

/// Begins what is asked for, or ends it.
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
    let tell = {
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
                Ok(()) => tell("healed", None),
                Err(error) => tell("failed", Some(error.to_string())),
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
                Err(error) => tell("failed", Some(error.to_string())),
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
        tell("failed", Some("this cannot be done now".to_owned()));
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
        let outcome = parts.inject(&part, &verb, || tell("injected", None), or(end, resumed)).await;
        *fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match outcome {
            Ok(()) => tell("healed", None),
            Err(error) => {
                eprintln!("{verb} {part}: {error}");
                tell("failed", Some(error.to_string()));
            }
        }
    })
    .detach();
}

impl Parts {
    /// What the console may ask for.
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

    /// What it leaves alone, with the reason.
    fn excluded(&self) -> Vec<Json> {
        let Self::Native(settings) = self else { return Vec::new() };
        let given = |id: &str, by: &str| json!({ "id": id, "why": format!("given by {by}") });
        let broker = settings.kafka.is_some().then(|| given(BROKER, "KAFKA_BOOTSTRAP_SERVERS"));
        let database = settings.database_url.is_some().then(|| given(POSTGRES, "DATABASE_URL"));
        broker.into_iter().chain(database).collect()
    }

    /// Does something to a part until `end`, and makes it good again whatever happens in between.
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
                part.kill().await?;
                injected();
                end.await;
                part.start().await
            }
            "pause" => {
                let paused = part.pause().await;
                if paused.is_ok() {
                    injected();
                    end.await;
                }
                part.wake().await.and(paused)
            }
            "slow" => {
                let turns = async {
                    loop {
                        if let failed @ Err(_) = part.turn().await {
                            return failed;
                        }
                    }
                };
                injected();
                let outcome: Result<()> = or(turns, async {
                    end.await;
                    Ok(())
                })
                .await;
                part.wake().await.and(outcome)
            }
            _ => Err(anyhow!("{verb} is none of kill, pause and slow")),
        }
    }

    /// A part, with its containers: Compose takes seconds to tell them, on a busy machine longer than a turn may last.
    async fn target<'a>(&'a self, part: &'a str) -> Result<Target<'a>> {
        Ok(match self {
            Self::Native(settings) => Target::Native(settings, part),
            Self::Docker(docker) => Target::Docker(docker, part, docker.ids_of(part).await?),
        })
    }

    /// Wakes whatever stands still, such as after an agent that was killed. What runs does not notice.
    async fn wake_all(&self) {
        match self {
            Self::Native(settings) => {
                for part in native::SERVICES.into_iter().chain([BROKER, POSTGRES]) {
                    // What does not run needs no waking.
                    let _ = native::signal(settings, part, Signal::CONT);
                }
            }
            Self::Docker(docker) => drop(docker.unpause_all().await),
        }
    }
}

impl Target<'_> {
    /// Has it stand still for a moment, and run for another.
    async fn turn(&self) -> Result<()> {
        self.pause().await?;
        smol::Timer::after(SLOW_TURN).await;
        self.wake().await?;
        smol::Timer::after(SLOW_TURN).await;
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

    async fn wake(&self) -> Result<()> {
        match self {
            Self::Native(settings, part) => native::signal(settings, part, Signal::CONT),
            Self::Docker(_, _, ids) => Docker::control(ids, "unpause").await,
        }
    }
}
