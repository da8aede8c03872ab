//! One run: load and faults, healing, drain, audit, verdict.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::{join_all, join4};
use runtime::Shutdown;
use testbed::{StartError, audit::Acknowledged};

use crate::{
    Options, Place, containers,
    load::{Seen, Sums, Writer},
    native,
    schedule::{Injection, Round, clock_steps, failovers, schedule, undos},
    system::SystemUnderTest,
    topic,
    undo_deletes::undo_deletes,
};

/// Time after the last fault for clients to get an answer to what they have begun. The longest pause of the
/// reconciler, without which no transaction can be entered, is a part of it.
const SETTLE: Duration = Duration::from_secs(90);
/// Time after that for the outbox, the tasks for billing and the topic to be drained.
const DRAIN: Duration = Duration::from_secs(120);
/// How often a long run reports its progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// A run of this length has undone some deletions.
const PROVES_DUPLICATES: Duration = Duration::from_secs(30);

/// Prints what happens, with its time.
#[derive(Clone, Copy, Debug)]
struct Log(Instant);

impl Log {
    fn say(self, what: &str) {
        println!("{:>8.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

/// Runs it, prints what happens, and gives whether nothing was lost and everything recovered.
///
/// # Errors
/// If the system cannot be started or asked, or a fault cannot be injected.
pub(crate) async fn run(options: Options) -> Result<bool, StartError> {
    let Options { length, seed, clients, .. } = options;
    let system = match options.place {
        Place::Native(broker) => native::start(broker).await?,
        Place::Containers => containers::find().await?,
    };
    let SystemUnderTest { description, parts, clients: replicas, .. } = &system;
    println!("chaos --seconds {} --seed {seed} --clients {clients}: {description}", length.as_secs());

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
            smol::Timer::after(REPORT_INTERVAL).await;
            log.say(&format!("... {} patients created", seen.sums().created));
        }
    };
    let faults = async {
        let rounds = inject_all(schedule(seed, length, parts.len()), length, &system, log);
        let undone = undo_all(undos(seed, length), length, &system, log);
        let stepped = step_clock(clock_steps(seed, length), &system, log);
        let failed_over = Box::pin(fail_over_all(failovers(seed, length), &system, log));
        let (injected, undone, stepped, failed_over) = join4(rounds, undone, stepped, failed_over).await;
        smol::Timer::at(log.0 + length).await;
        Ok::<_, StartError>((injected? + failed_over?, undone, stepped?))
    };
    let (injected, undone, stepped) = smol::future::or(faults, sign).await?;
    log.say("the faults are over; clients end what they have begun");
    stop.trigger();
    *give_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + SETTLE);
    let healing = Instant::now();
    let writers = join_all(writers).await;
    for (_, part) in parts {
        part.lock().await.until_ready().await?;
    }
    let healed = healing.elapsed();
    let places = system.places().await?;
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
    if system.topic_is_ours {
        wrong.extend(topic::check(&places, &replicas[0]).await?);
        log.say("partitions were added; then the topic was deleted and filled again");
    }
    for (name, part) in parts {
        wrong.extend(part.lock().await.panics().await.into_iter().map(|line| format!("{name}: {line}")));
    }
    if undone > 0 && report.duplicates == 0 {
        wrong.push(format!("deletions of {undone} published events were undone, and none was published again"));
    } else if undone == 0 && length >= PROVES_DUPLICATES {
        wrong.push("no deletion could be undone: that duplicates are absorbed is not proven".to_owned());
    }

    print_sums(&sums);
    println!("  audit: {report}");
    wrong.iter().for_each(|wrong| println!("  WRONG: {wrong}"));
    let verdict = if wrong.is_empty() { "nothing lost" } else { "LOST, not healed or not proven" };
    println!(
        "VERDICT: {verdict}: seed {seed}, {} s, {description}, {injected} faults, {stepped} steps of the clock, {} acknowledged writes, longest wait {:.1} s, \
         {} events delivered again and {} requests repeated, all absorbed",
        length.as_secs(),
        sums.created + sums.updated + sums.deleted + sums.entered,
        sums.patients_wait.time.max(sums.ledger_wait.time).as_secs_f64(),
        report.duplicates,
        sums.done_unheard
    );
    if let Some(logs) = system.logs.as_ref().filter(|_| !wrong.is_empty()) {
        keep_logs(logs, seed)?;
    }
    Ok(wrong.is_empty())
}

/// Injects round after round until `length` is over; gives how many faults there were. Starts and stops take time that
/// the schedule does not know: the pauses between rounds are kept, and the last rounds are left out.
async fn inject_all(
    rounds: Vec<Round>,
    length: Duration,
    system: &SystemUnderTest,
    log: Log,
) -> Result<usize, StartError> {
    let (mut injected, mut end) = (0, Duration::ZERO);
    for round in rounds {
        smol::Timer::after(round.at - end).await;
        if log.0.elapsed() > length {
            break;
        }
        end = round.end();
        injected += round.injections.len();
        let injections = round.injections.into_iter().map(|Injection { after, target, fault }| async move {
            smol::Timer::after(after).await;
            let (name, part) = &system.parts[target];
            log.say(&format!("{name}: {fault}"));
            let began = Instant::now();
            part.lock().await.inject(fault, &system.scratch).await?;
            log.say(&format!("{name}: runs again after {:.1} s", began.elapsed().as_secs_f64()));
            Ok::<_, StartError>(())
        });
        for outcome in join_all(injections).await {
            outcome?;
        }
    }
    Ok(injected)
}

/// Undoes deletions from the outbox at each of these times; gives how many.
async fn undo_all(times: Vec<Duration>, length: Duration, system: &SystemUnderTest, log: Log) -> usize {
    let mut all = 0;
    for at in times {
        smol::Timer::at(log.0 + at).await;
        let Ok(places) = system.places().await else { continue };
        // A fault of PostgreSQL meanwhile ends it.
        let undone = undo_deletes(&places.patients_database, length.saturating_sub(at)).await.unwrap_or(0);
        if undone > 0 {
            log.say(&format!("the outbox: the deletion of {undone} events is undone"));
        }
        all += undone;
    }
    all
}

/// Has PostgreSQL fail over to its standby at each of these times, or once the fault that it has then is over; gives how often.
async fn fail_over_all(times: Vec<Duration>, system: &SystemUnderTest, log: Log) -> Result<usize, StartError> {
    let Some((name, part)) = system.parts.iter().find(|(name, _)| name == native::POSTGRES) else { return Ok(0) };
    let mut all = 0;
    for at in times {
        smol::Timer::at(log.0 + at).await;
        let mut part = part.lock().await;
        let began = Instant::now();
        if part.fail_over(&system.scratch).await? {
            log.say(&format!("{name}: failed over to its standby in {:.1} s", began.elapsed().as_secs_f64()));
            all += 1;
        }
    }
    Ok(all)
}

/// Sets PostgreSQL's clock at each of these times, if it can be set; gives how often. The last offset stays: nothing may
/// depend on a clock that is right again.
async fn step_clock(steps: Vec<(Duration, i64)>, system: &SystemUnderTest, log: Log) -> Result<usize, StartError> {
    let Some(clock) = &system.clock else { return Ok(0) };
    let all = steps.len();
    for (at, offset) in steps {
        smol::Timer::at(log.0 + at).await;
        clock.set(offset)?;
        log.say(&format!("PostgreSQL: its clock is set to {offset} s after the right time"));
    }
    Ok(all)
}

fn print_sums(sums: &Sums) {
    let Sums { created, updated, deleted, read, entered, unanswered, refused, done_unheard, .. } = sums;
    println!(
        "  clients: {created} created, {updated} changed, {deleted} deleted, {read} read, {entered} transactions\n\
         \x20 without an answer {unanswered} times, answered 503 {refused} times; {done_unheard} of those changes had been made\n\
         \x20 longest wait: {} for patients, {} for the ledger",
        sums.patients_wait, sums.ledger_wait
    );
}

/// Keeps the services' logs for whoever looks for the cause.
fn keep_logs(logs: &Path, seed: u64) -> Result<(), StartError> {
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
