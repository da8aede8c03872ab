//! One run: prepare, load, put together.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use runtime::Shutdown;
use smol::future::or;
use uuid::Uuid;

use crate::{
    Outcome,
    counters::{self, Counters},
    event_latency::Follower,
    options::Options,
    pace::Pace,
    processes::{Usage, Watch, Watched},
    progress::Progress,
    recorder::{Latencies, Recorder},
    report::{Applied, Report},
    scenario::{Client, Scenario},
    target::{Connection, Target},
};

/// Time after the end for events to be applied.
const APPLY_LIMIT: Duration = Duration::from_secs(60);
/// A client whose request failed in a closed loop waits so long, so that a service that is gone is not asked a million
/// times.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// What one client did.
struct Done {
    recorder: Recorder,
    /// Patients that it made while it was measured, with the time from which their latency counts.
    created: Vec<(Uuid, Instant)>,
    last_answer: Instant,
}

/// Measures.
///
/// # Errors
/// If it cannot begin.
pub(crate) async fn run(options: Arc<Options>, shutdown: Shutdown) -> Outcome<Report> {
    let run = options.run();
    let target = Arc::new(Target::resolve(&run.url).await?);
    let connect = || Connection::new(target.clone(), run.limit);
    let scenario = Arc::new(match &run.path {
        Some(path) => Scenario::path(path.clone()),
        None => Scenario::mix(run.scenario, &mut connect(), run.known).await?,
    });
    let follower = match (&run.kafka, &run.analytics) {
        (Some(kafka), Some(analytics)) => {
            let analytics = Arc::new(Target::resolve(analytics).await?);
            Some(Follower::start(kafka.clone(), &run.topic, analytics).await?)
        }
        _ => None,
    };

    let connections = usize::from(run.connections);
    let preparing: Vec<_> = (0..connections)
        .map(|number| {
            let client = Client::new(scenario.clone(), number);
            let share = client.share(run.own, connections);
            runtime::spawn(prepare(client, connect(), share))
        })
        .collect();
    let mut prepared = Vec::new();
    for client in preparing {
        prepared.push(client.await?);
    }

    let pace = Arc::new(Pace::new(options.rate(), run.warm_up, run.duration, run.limit, shutdown.clone()));
    let progress = Arc::<Progress>::default();
    let clients: Vec<_> = prepared
        .into_iter()
        .map(|(client, connection)| runtime::spawn(work(client, connection, pace.clone(), progress.clone())))
        .collect();
    let watched = run.watch.iter().cloned().chain([Watched::ourselves()]).collect();
    let usage = runtime::spawn(watch(watched, run.counters.clone(), pace.clone(), shutdown.clone()));
    let work = async {
        let mut done = Vec::new();
        for client in clients {
            done.push(client.await);
        }
        done
    };
    let done = if run.quiet { work.await } else { or(work, progress.show(&pace)).await };

    let mut recorder = Recorder::new();
    let mut created = Vec::new();
    let last_answer = done.iter().map(|done| done.last_answer).max().unwrap_or_else(Instant::now);
    for client in done {
        recorder.merge(client.recorder);
        created.extend(client.created);
    }
    if let Some(intended) = pace.intended() {
        let begun = recorder.all().count() + recorder.failed();
        if intended > begun {
            recorder.add_errors("never sent: every connection was busy".to_owned(), intended - begun);
        }
    }
    let measured = last_answer.min(pace.end()).saturating_duration_since(pace.measured_from());
    let applied = match follower {
        Some(follower) => Some(applied(follower, &created, last_answer, measured).await?),
        None => None,
    };
    let (usage, counted) = usage.await?;
    Ok(Report::new(&options, scenario.known(), measured, &recorder, applied, usage, counted))
}

/// Has a client make so many patients, which it may change then.
async fn prepare(
    mut client: Client,
    mut connection: Connection,
    patients: usize,
) -> Result<(Client, Connection), String> {
    while client.own() < patients {
        let request = client.create();
        let outcome = connection.send(request.method.clone(), &request.path, request.body.clone()).await;
        if client.learn(&request, &outcome).is_none() {
            let why = outcome.map_or_else(|error| error.to_string(), |answer| format!("status {}", answer.status));
            return Err(format!("POST {}, before it begins: {why}", request.path));
        }
    }
    Ok((client, connection))
}

/// Sends requests, one after the other, until the end.
async fn work(mut client: Client, mut connection: Connection, pace: Arc<Pace>, progress: Arc<Progress>) -> Done {
    let mut done = Done { recorder: Recorder::new(), created: Vec::new(), last_answer: Instant::now() };
    while let Some(intended) = pace.next().await {
        let request = client.next();
        let outcome = connection.send(request.method.clone(), &request.path, request.body.clone()).await;
        done.last_answer = Instant::now();
        let latency = done.last_answer.duration_since(intended);
        let success = outcome.as_ref().is_ok_and(|answer| request.action.wants(answer.status));
        progress.add(latency, success);
        let patient = client.learn(&request, &outcome);
        if pace.counts(intended) {
            done.recorder.add(request.action, latency, &outcome);
            done.created.extend(patient.map(|patient| (patient, intended)));
        }
        if !success {
            smol::Timer::after(FAILURE_PAUSE).await;
        }
    }
    done
}

/// What the processes took while it was measured, and by how much the counters have grown.
async fn watch(
    watched: Vec<Watched>,
    counters: Option<String>,
    pace: Arc<Pace>,
    shutdown: Shutdown,
) -> Result<(Vec<Usage>, Counters), String> {
    shutdown.run_until_stopped(smol::Timer::at(pace.measured_from())).await;
    let before = counters::read(counters.as_deref()).await?;
    let mut watch = Watch::new(watched);
    let end = async {
        shutdown.run_until_stopped(smol::Timer::at(pace.end())).await;
    };
    or(watch.look(), end).await;
    let usage = watch.finish();
    Ok((usage, counters::growth(&before, &counters::read(counters.as_deref()).await?)))
}

/// How long the events of these patients took to be applied.
async fn applied(
    follower: Follower,
    created: &[(Uuid, Instant)],
    last_answer: Instant,
    measured: Duration,
) -> Result<Applied, String> {
    let times = follower.finish(created.iter().map(|(patient, _)| *patient), APPLY_LIMIT).await?;
    let mut latencies = Latencies::new();
    for (patient, begun) in created {
        if let Some(applied) = times.get(patient) {
            latencies.add(applied.saturating_duration_since(*begun));
        }
    }
    let last = times.values().max().copied().unwrap_or(last_answer);
    Ok(Applied {
        latency: latencies.summary(measured),
        missing: (created.len() - times.len()) as u64,
        after_the_end_ms: last.saturating_duration_since(last_answer).as_secs_f64() * 1e3,
    })
}
