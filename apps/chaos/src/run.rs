//! One run: load and faults, healing, drain, audit, verdict.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use runtime::Shutdown;
use testbed::{
    Scratch, StartError,
    audit::{Acknowledged, Places},
    broker::{Broker, Kind},
    postgres::{Cluster, Durability},
    system::{Ground, System},
};

use crate::{
    Options,
    load::{Seen, Sums, Writer},
    parts::Part,
    schedule::{Round, Strike, Target, schedule},
};

/// Replicas of patient-service.
const REPLICAS: usize = 3;
/// Time after the last fault for clients to get an answer to what they have begun. The longest pause of the
/// reconciler, without which no transaction can be entered, is a part of it.
const SETTLE: Duration = Duration::from_secs(90);
/// Time after that for the outbox, the tasks for billing and the topic to be drained.
const DRAIN: Duration = Duration::from_secs(120);
/// How often a long run says that it goes on.
const SIGN: Duration = Duration::from_secs(60);

type Parts = HashMap<Target, smol::lock::Mutex<Part>>;

/// Tells what happens, with its time.
#[derive(Clone, Copy, Debug)]
struct Log(Instant);

impl Log {
    fn say(self, what: &str) {
        println!("{:>8.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

/// Runs it, tells what happens, and gives whether nothing was lost and all healed.
///
/// # Errors
/// If the system cannot be started, struck or asked.
pub(crate) async fn run(options: Options) -> Result<bool, StartError> {
    let Options { length, seed, clients, broker } = options;
    let kind = had(broker).await?;
    println!(
        "chaos --seconds {} --seed {seed} --clients {clients}: {kind}, {REPLICAS} patient-services",
        length.as_secs()
    );
    let scratch = Scratch::new()?;
    let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await?;
    scratch.guard(cluster.process())?;
    for name in ["patients", "billing"] {
        cluster.create_database(name).await?;
    }
    let mut broker = Broker::start_anywhere(kind, &scratch.path().join("broker"), "").await?;
    scratch.guard(broker.process())?;
    let ground = Ground {
        patients_database: cluster.url("patients"),
        billing_database: cluster.url("billing"),
        kafka: broker.address(),
        topic: "patient".to_owned(),
    };
    let system = System::start(ground, REPLICAS, &[("LOG_LEVEL", "warn")]).await?;
    let places = Places::of(&system);
    let replicas: Vec<_> = system.patients.iter().map(|service| service.client()).collect();
    let logs = system.directory().to_owned();
    let mut parts = HashMap::from([
        (Target::Broker, Part::Broker(broker)),
        (Target::Postgres, Part::Postgres(cluster)),
        (Target::Billing, Part::Service(system.billing)),
        (Target::Analytics, Part::Service(system.analytics)),
    ]);
    parts.extend(
        system.patients.into_iter().enumerate().map(|(n, service)| (Target::Patients(n), Part::Service(service))),
    );
    let parts: Parts = parts.into_iter().map(|(target, part)| (target, smol::lock::Mutex::new(part))).collect();

    let log = Log(Instant::now());
    let (acknowledged, seen, stop) = (Acknowledged::default(), Seen::default(), Shutdown::new());
    let give_up = Arc::new(Mutex::new(None));
    let writers: Vec<_> = (0..clients)
        .map(|number| {
            let writer =
                Writer::new(number, seed, replicas.clone(), acknowledged.clone(), seen.clone(), give_up.clone());
            runtime::spawn(writer.run(stop.clone()))
        })
        .collect();
    log.say(&format!("{clients} clients write and read"));
    let sign = async {
        loop {
            smol::Timer::after(SIGN).await;
            log.say(&format!("... {} patients created", seen.sums().created));
        }
    };
    let faults = async {
        let struck = strike_all(schedule(seed, length, REPLICAS), length, &parts, &scratch, log).await;
        smol::Timer::at(log.0 + length).await;
        struck
    };
    let struck = smol::future::or(faults, sign).await?;
    log.say("the faults are over; clients end what they have begun");
    stop.trigger();
    *give_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + SETTLE);
    let healing = Instant::now();
    let writers = join_all(writers).await;
    for part in parts.values() {
        part.lock().await.until_ready().await?;
    }
    let healed = healing.elapsed();
    let drained = places.until_drained(DRAIN).await;
    join_all(writers.into_iter().flatten().map(Writer::check)).await;
    let report = places.audit(&acknowledged).await?;

    let sums = seen.sums();
    let mut wrong = report.losses.clone();
    wrong.extend(sums.surprises.clone());
    if sums.more_surprises > 0 {
        wrong.push(format!("{} more answers that no fault explains", sums.more_surprises));
    }
    match &drained {
        Ok(drained) => {
            let (healed, drained) = (healed.as_secs_f64(), drained.as_secs_f64());
            log.say(&format!("all requests answered and all ready after {healed:.1} s, drained {drained:.1} s later"));
        }
        Err(error) => wrong.push(error.to_string()),
    }
    for (target, part) in &parts {
        wrong.extend(part.lock().await.panics().into_iter().map(|line| format!("{target}: {line}")));
    }

    tell(&sums);
    println!("  audit: {report}");
    wrong.iter().for_each(|wrong| println!("  WRONG: {wrong}"));
    let verdict = if wrong.is_empty() { "nothing lost" } else { "LOST or not healed" };
    println!(
        "VERDICT: {verdict}: seed {seed}, {} s, {kind}, {struck} strikes, {} acknowledged writes, longest wait {:.1} s, \
         {} duplicates absorbed",
        length.as_secs(),
        sums.created + sums.updated + sums.deleted + sums.entered,
        sums.patients_wait.time.max(sums.ledger_wait.time).as_secs_f64(),
        report.duplicates + sums.done_unheard
    );
    if !wrong.is_empty() {
        keep(&logs, seed)?;
    }
    Ok(wrong.is_empty())
}

/// The broker to use, installed.
async fn had(wanted: Option<Kind>) -> Result<Kind, StartError> {
    match wanted {
        Some(kind) => kind.install().await.map(|()| kind),
        None if Kind::Kafka.install().await.is_ok() => Ok(Kind::Kafka),
        None => Kind::Nisshi.install().await.map(|()| Kind::Nisshi),
    }
}

/// Strikes round after round until `length` is over; gives how many strikes there were. Starts and stops take time that
/// the schedule does not know: the pauses between rounds are kept, and the last rounds are left out.
async fn strike_all(
    rounds: Vec<Round>,
    length: Duration,
    parts: &Parts,
    scratch: &Scratch,
    log: Log,
) -> Result<usize, StartError> {
    let (mut struck, mut end) = (0, Duration::ZERO);
    for round in rounds {
        smol::Timer::after(round.at - end).await;
        if log.0.elapsed() > length {
            break;
        }
        end = round.end();
        struck += round.strikes.len();
        let strikes = round.strikes.into_iter().map(|Strike { after, target, fault }| async move {
            smol::Timer::after(after).await;
            log.say(&format!("{target}: {fault}"));
            let began = Instant::now();
            parts[&target].lock().await.strike(fault, scratch).await?;
            log.say(&format!("{target}: runs again after {:.1} s", began.elapsed().as_secs_f64()));
            Ok::<_, StartError>(())
        });
        for outcome in join_all(strikes).await {
            outcome?;
        }
    }
    Ok(struck)
}

fn tell(sums: &Sums) {
    let Sums { created, updated, deleted, read, entered, unanswered, refused, done_unheard, .. } = sums;
    println!(
        "  clients: {created} created, {updated} changed, {deleted} deleted, {read} read, {entered} transactions\n\
         \x20 without an answer {unanswered} times, answered 503 {refused} times; {done_unheard} of those changes had been made\n\
         \x20 longest wait: {} for patients, {} for the ledger",
        sums.patients_wait, sums.ledger_wait
    );
}

/// Keeps the services' logs for whoever looks for the cause.
fn keep(logs: &Path, seed: u64) -> Result<(), StartError> {
    let kept = std::env::temp_dir().join(format!("chaos-{seed}"));
    fs::create_dir_all(&kept)?;
    for entry in fs::read_dir(logs)?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            fs::copy(entry.path(), kept.join(entry.file_name()))?;
        }
    }
    println!("The services' logs are in {}.", kept.display());
    Ok(())
}
