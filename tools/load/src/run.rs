//! One run: prepares the clients, sends the load, and merges the results.

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
    event_latency::EventFollower,
    options::Options,
    processes::{Usage, UsageMeter, WatchedProcess},
    progress::Progress,
    recorder::{Latencies, Recorder},
    report::{EventLatency, Report},
    scenario::{Client, Scenario},
    schedule::Schedule,
    target::{Connection, Target},
};

/// Time after the end for events to be applied.
const APPLY_LIMIT: Duration = Duration::from_secs(60);
/// Pause of a client after a failed request, so that a closed loop does not spin on a refused connection.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// The result of one client.
struct ClientResult {
    recorder: Recorder,
    /// Patients that it created during the measurement, each with the scheduled start of its request.
    created: Vec<(Uuid, Instant)>,
    last_response: Instant,
}

/// Runs the load and measures.
///
/// # Errors
/// If the run cannot start.
pub(crate) async fn run(options: Arc<Options>, shutdown: Shutdown) -> Outcome<Report> {
    let run = options.run();
    let mut target = Target::resolve(&run.url).await?;
    if let Some(authority) = &run.cacert {
        target = target.with_authority(authority)?;
    }
    if let Some(file) = &run.token {
        let token = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        target = target.with_token(token.trim())?;
    }
    let target = Arc::new(target);
    let connect = || Connection::new(target.clone(), run.limit).closing_after_each(run.new_connections);
    let scenario = Arc::new(match &run.path {
        Some(path) => Scenario::path(path.clone()),
        None => Scenario::patients(run.scenario, &mut connect(), run.known).await?,
    });
    let follower = match (&run.kafka, &run.analytics) {
        (Some(kafka), Some(analytics)) => {
            let analytics = Arc::new(Target::resolve(analytics).await?);
            Some(EventFollower::start(kafka.clone(), &run.topic, analytics).await?)
        }
        _ => None,
    };

    let connections = usize::from(run.connections);
    let preparing: Vec<_> = (0..connections)
        .map(|number| {
            let client = Client::new(scenario.clone(), number);
            let patients = client.patients_to_create(run.own, connections);
            runtime::spawn(prepare(client, connect(), patients))
        })
        .collect();
    let mut prepared = Vec::new();
    for client in preparing {
        prepared.push(client.await?);
    }

    let schedule = Arc::new(Schedule::new(options.rate(), run.warm_up, run.duration, run.limit, shutdown.clone()));
    let progress = Arc::<Progress>::default();
    let clients: Vec<_> = prepared
        .into_iter()
        .map(|(client, connection)| runtime::spawn(run_client(client, connection, schedule.clone(), progress.clone())))
        .collect();
    let watched = run.watch.iter().cloned().chain([WatchedProcess::own()]).collect();
    let usage = runtime::spawn(measure_usage(watched, run.counters.clone(), schedule.clone(), shutdown.clone()));
    let work = async {
        let mut done = Vec::new();
        for client in clients {
            done.push(client.await);
        }
        done
    };
    let done = if run.quiet { work.await } else { or(work, progress.report(&schedule)).await };

    let mut recorder = Recorder::new();
    let mut created = Vec::new();
    let last_response = done.iter().map(|done| done.last_response).max().unwrap_or_else(Instant::now);
    for client in done {
        recorder.merge(client.recorder);
        created.extend(client.created);
    }
    if let Some(intended) = schedule.intended() {
        let begun = recorder.all().count() + recorder.failed();
        if intended > begun {
            recorder.add_errors("never sent: every connection was busy".to_owned(), intended - begun);
        }
    }
    let measured = last_response.min(schedule.end()).saturating_duration_since(schedule.measured_from());
    let applied = match follower {
        Some(follower) => Some(event_latency(follower, &created, last_response, measured).await?),
        None => None,
    };
    let (usage, counted) = usage.await?;
    Ok(Report::new(&options, scenario.known(), measured, &recorder, applied, usage, counted))
}

/// Has a client create `patients` patients, for it to update or delete.
async fn prepare(
    mut client: Client,
    mut connection: Connection,
    patients: usize,
) -> Result<(Client, Connection), String> {
    while client.own() < patients {
        let request = client.create();
        let outcome = connection.send(request.method.clone(), &request.path, request.body.clone()).await;
        if client.record(&request, &outcome).is_none() {
            let why = outcome.map_or_else(|error| error.to_string(), |response| format!("status {}", response.status));
            return Err(format!("POST {}, before the run: {why}", request.path));
        }
    }
    Ok((client, connection))
}

/// Sends requests one after the other until the end of the run.
async fn run_client(
    mut client: Client,
    mut connection: Connection,
    schedule: Arc<Schedule>,
    progress: Arc<Progress>,
) -> ClientResult {
    let mut done = ClientResult { recorder: Recorder::new(), created: Vec::new(), last_response: Instant::now() };
    while let Some(intended) = schedule.next().await {
        let request = client.next();
        let outcome = connection.send(request.method.clone(), &request.path, request.body.clone()).await;
        done.last_response = Instant::now();
        let latency = done.last_response.duration_since(intended);
        let success = outcome.as_ref().is_ok_and(|response| response.status.is_success());
        progress.add(latency, success);
        let patient = client.record(&request, &outcome);
        if schedule.is_measured(intended) {
            done.recorder.add(request.action, latency, &outcome);
            done.created.extend(patient.map(|patient| (patient, intended)));
        }
        if !success {
            smol::Timer::after(FAILURE_PAUSE).await;
        }
    }
    done
}

/// CPU time and memory of the processes during the measurement, and the growth of the counters.
async fn measure_usage(
    watched: Vec<WatchedProcess>,
    counters: Option<String>,
    schedule: Arc<Schedule>,
    shutdown: Shutdown,
) -> Result<(Vec<Usage>, Counters), String> {
    shutdown.run_until_stopped(smol::Timer::at(schedule.measured_from())).await;
    let before = counters::read(counters.as_deref()).await?;
    let mut meter = UsageMeter::new(watched);
    let end = async {
        shutdown.run_until_stopped(smol::Timer::at(schedule.end())).await;
    };
    or(meter.sample_memory(), end).await;
    let usage = meter.finish();
    Ok((usage, counters::growth(&before, &counters::read(counters.as_deref()).await?)))
}

/// The latency of the events of these patients.
async fn event_latency(
    follower: EventFollower,
    created: &[(Uuid, Instant)],
    last_response: Instant,
    measured: Duration,
) -> Result<EventLatency, String> {
    let times = follower.finish(created.iter().map(|(patient, _)| *patient), APPLY_LIMIT).await?;
    let mut latencies = Latencies::new();
    for (patient, begun) in created {
        if let Some(applied) = times.get(patient) {
            latencies.add(applied.saturating_duration_since(*begun));
        }
    }
    let last = times.values().max().copied().unwrap_or(last_response);
    Ok(EventLatency {
        latency: latencies.summary(measured),
        missing: (created.len() - times.len()) as u64,
        after_the_end_ms: last.saturating_duration_since(last_response).as_secs_f64() * 1e3,
    })
}
