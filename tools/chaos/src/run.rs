//! One run: load and faults, recovery, drain, audit, verdict.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::{join_all, join5};
use runtime::Shutdown;
use smol::future::or;
use testbed::{Error, audit::Acknowledged, broker::Kind};

use crate::{
    clients::{SharedStats, Stats, Writer},
    containers,
    members::Observer,
    native,
    options::{Deployment, Options},
    schedule::{Fault, Injection, Round, clock_steps, delete_undo_times, failover_times, member_faults, schedule},
    system::SystemUnderTest,
    topic,
    undo_deletes::undo_deletes,
};

/// Time after the last fault for clients to get a response to their last request. It includes the reconciler's longest
/// backoff: until the account is open, no transaction can be recorded.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Time after that until the outbox, the billing tasks and the topic are drained.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a long run reports its progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// A run of this length undoes some deletions, so there must be duplicates.
const DUPLICATES_EXPECTED_AFTER: Duration = Duration::from_secs(30);
/// After the faults, how long it is tried to undo a deletion, if none could be undone before, and how often.
const UNDO_TIMEOUT: Duration = Duration::from_secs(60);
const UNDO_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Prints messages with the time since the start.
#[derive(Clone, Copy, Debug)]
struct Log(Instant);

impl Log {
    fn print(self, message: &str) {
        println!("{:>8.1} s  {message}", self.0.elapsed().as_secs_f64());
    }
}

/// Runs chaos and prints what happens. True if nothing was lost and the system recovered.
///
/// # Errors
/// If the system cannot be started or read, or a fault cannot be injected.
pub(crate) async fn run(options: Options) -> Result<bool, Error> {
    let Options { length, seed, clients, members, .. } = options;
    let group = (members, options.standbys);
    let system = match options.deployment {
        Deployment::Native(broker) => native::start(broker, false, group).await?,
        Deployment::Secure => native::start(Some(Kind::Kafka), true, group).await?,
        Deployment::Containers => containers::find().await?,
    };
    let SystemUnderTest { description, components, clients: replicas, .. } = &system;
    let with_members = match group {
        (1, _) => String::new(),
        (members, 0) => format!(" --members {members}"),
        (members, standbys) => format!(" --members {members} --standbys {standbys}"),
    };
    println!("chaos --seconds {} --seed {seed} --clients {clients}{with_members}: {description}", length.as_secs());

    let log = Log(Instant::now());
    let (acknowledged, shared_stats, stop) = (Acknowledged::default(), SharedStats::default(), Shutdown::new());
    let give_up_at = Arc::new(Mutex::new(None));
    let writers: Vec<_> = (0..clients)
        .map(|number| {
            let writer = Writer::new(
                number,
                seed,
                replicas.clone(),
                acknowledged.clone(),
                shared_stats.clone(),
                give_up_at.clone(),
            );
            runtime::spawn(writer.run(stop.clone()))
        })
        .collect();
    log.print(&format!("{clients} clients write and read"));
    let progress = async {
        loop {
            smol::Timer::after(REPORT_INTERVAL).await;
            log.print(&format!("... {} patients created", shared_stats.stats().created));
        }
    };
    // The other members have faults of their own: with and without them, a seed makes the same rounds.
    let in_rounds = components.len() - system.members.len().saturating_sub(1);
    let observer = Observer::new(system.fixed_auditor.as_ref().map_or(&[][..], |auditor| auditor.analytics.as_slice()));
    let faults = async {
        let rounds = inject_all(schedule(seed, length, in_rounds), length, &system, log);
        let of_members = member_faults(seed, length, system.members.len());
        let of_members = Box::pin(inject_into_members(of_members, length, &system, log));
        let undone = undo_all(delete_undo_times(seed, length), length, &system, log);
        let stepped = step_clock(clock_steps(seed, length), &system, log);
        let failed_over = Box::pin(fail_over_all(failover_times(seed, length), &system, log));
        let (injected, undone, stepped, failed_over, of_members) =
            join5(rounds, undone, stepped, failed_over, of_members).await;
        smol::Timer::at(log.0 + length).await;
        Ok::<_, Error>((injected? + failed_over? + of_members?, undone, stepped?))
    };
    let (injected, undone, stepped) = or(faults, or(progress, observer.observe(&shared_stats, clients))).await?;
    log.print("the faults are over; clients finish their last requests");
    stop.trigger();
    *give_up_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + SETTLE_TIMEOUT);
    let recovering = Instant::now();
    let writers = join_all(writers).await;
    for (_, component) in components {
        component.lock().await.until_ready().await?;
    }
    let recovered = recovering.elapsed();
    let auditor = system.auditor().await?;
    let drained = auditor.until_drained(DRAIN_TIMEOUT).await;
    // While partitions move, two members may answer for one.
    let settled = observer.until_settled(&auditor).await;
    join_all(writers.into_iter().flatten().map(Writer::check)).await;
    let report = auditor.audit(&acknowledged).await?;

    let stats = shared_stats.stats();
    let mut wrong = report.losses.clone();
    wrong.extend(stats.unexpected_responses.clone());
    if stats.more_unexpected_responses > 0 {
        wrong.push(format!("{} more responses that no fault explains", stats.more_unexpected_responses));
    }
    wrong.extend(settled.err().map(|error| error.to_string()));
    wrong.extend(observer.check(length).await);
    match &drained {
        Ok(drained) => {
            let (recovered, drained) = (recovered.as_secs_f64(), drained.as_secs_f64());
            log.print(&format!(
                "all requests have a response and all services are ready after {recovered:.1} s, drained {drained:.1} s later"
            ));
        }
        Err(error) => wrong.push(error.to_string()),
    }
    if system.may_change_topic {
        wrong.extend(topic::check(&auditor, &replicas[0]).await?);
        log.print("partitions were added; then the topic was deleted, created again and filled");
    }
    for (name, component) in components {
        wrong.extend(component.lock().await.panics().await.into_iter().map(|line| format!("{name}: {line}")));
    }
    if undone > 0 && report.duplicates == 0 {
        wrong.push(format!("deletions of {undone} published events were undone, and none was published again"));
    } else if undone == 0 && length >= DUPLICATES_EXPECTED_AFTER {
        wrong.push("no deletion could be undone: that duplicates are absorbed is not proven".to_owned());
    }

    print_sums(&stats);
    println!("{observer}  audit: {report}");
    wrong.iter().for_each(|wrong| println!("  WRONG: {wrong}"));
    let verdict = if wrong.is_empty() { "nothing lost" } else { "LOST, not recovered or not proven" };
    println!(
        "VERDICT: {verdict}: seed {seed}, {} s, {description}, {injected} faults, {stepped} steps of the clock, {} acknowledged writes, longest wait {:.1} s, \
         {} duplicates of events and {} repeated requests, all absorbed",
        length.as_secs(),
        stats.created + stats.updated + stats.deleted + stats.transactions_recorded,
        stats.patients_wait.time.max(stats.ledger_wait.time).as_secs_f64(),
        report.duplicates,
        stats.committed_without_response
    );
    if let Some(logs) = system.logs.as_ref().filter(|_| !wrong.is_empty()) {
        keep_logs(logs, seed)?;
    }
    Ok(wrong.is_empty())
}

/// Injects the rounds until `length` is over; returns the number of faults. Starts and stops take time that the schedule does
/// not include: the pauses between rounds are kept, and the last rounds are skipped.
async fn inject_all(rounds: Vec<Round>, length: Duration, system: &SystemUnderTest, log: Log) -> Result<usize, Error> {
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
            let (name, component) = &system.components[target];
            log.print(&format!("{name}: {fault}"));
            let began = Instant::now();
            component.lock().await.inject(fault, &system.scratch).await?;
            log.print(&format!("{name}: runs again after {:.1} s", began.elapsed().as_secs_f64()));
            Ok::<_, Error>(())
        });
        for outcome in join_all(injections).await {
            outcome?;
        }
    }
    Ok(injected)
}

/// Undoes deletions from the outbox at each of these times; returns how many. If faults were in the way each time, tries on
/// after the last of them, while clients still write.
async fn undo_all(times: Vec<Duration>, length: Duration, system: &SystemUnderTest, log: Log) -> usize {
    let mut all = 0;
    for at in &times {
        smol::Timer::at(log.0 + *at).await;
        all += undo_at_once(length.saturating_sub(*at), system, log).await;
    }
    let last = log.0 + length + UNDO_TIMEOUT;
    while all == 0 && !times.is_empty() {
        let left = last.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        all += undo_at_once(left, system, log).await;
        smol::Timer::after(UNDO_RETRY_INTERVAL).await;
    }
    all
}

async fn undo_at_once(left: Duration, system: &SystemUnderTest, log: Log) -> usize {
    let Ok(auditor) = system.auditor().await else { return 0 };
    // It fails if PostgreSQL has a fault meanwhile.
    let undone = undo_deletes(&auditor.patients_database, left).await.unwrap_or(0);
    if undone > 0 {
        log.print(&format!("the outbox: the deletion of {undone} events is undone"));
    }
    undone
}

/// Fails PostgreSQL over to its standby at each of these times, after a fault that it has then; returns how often.
async fn fail_over_all(times: Vec<Duration>, system: &SystemUnderTest, log: Log) -> Result<usize, Error> {
    let Some((name, component)) = system.components.iter().find(|(name, _)| name == native::POSTGRES) else {
        return Ok(0);
    };
    let mut all = 0;
    for at in times {
        smol::Timer::at(log.0 + at).await;
        let mut component = component.lock().await;
        let began = Instant::now();
        if component.fail_over(&system.scratch).await? {
            log.print(&format!("{name}: failed over to its standby in {:.1} s", began.elapsed().as_secs_f64()));
            all += 1;
        }
    }
    Ok(all)
}

/// Injects faults into members of the consumer group at these times, or after the fault before; returns their number.
async fn inject_into_members(
    faults: Vec<(Duration, usize, Fault)>,
    length: Duration,
    system: &SystemUnderTest,
    log: Log,
) -> Result<usize, Error> {
    let mut injected = 0;
    for (at, number, fault) in faults {
        let Some(target) = system.members.get(number) else { continue };
        smol::Timer::at(log.0 + at).await;
        if log.0.elapsed() > length {
            break;
        }
        let (name, component) = &system.components[*target];
        let mut component = component.lock().await;
        log.print(&format!("{name}: {fault}"));
        component.inject(fault, &system.scratch).await?;
        log.print(&format!("{name}: runs again"));
        injected += 1;
    }
    Ok(injected)
}

/// Sets PostgreSQL's clock at each of these times, if it can be set; returns how often. The last offset stays: recovery must
/// not depend on a correct clock.
async fn step_clock(steps: Vec<(Duration, i64)>, system: &SystemUnderTest, log: Log) -> Result<usize, Error> {
    let Some(clock) = &system.clock else { return Ok(0) };
    let all = steps.len();
    for (at, offset) in steps {
        smol::Timer::at(log.0 + at).await;
        clock.set(offset)?;
        log.print(&format!("PostgreSQL: its clock is set to {offset} s after the right time"));
    }
    Ok(all)
}

fn print_sums(stats: &Stats) {
    let Stats {
        created,
        updated,
        deleted,
        read,
        transactions_recorded,
        unanswered,
        rejected_with_503,
        committed_without_response,
        ..
    } = stats;
    println!(
        "  clients: {created} created, {updated} changed, {deleted} deleted, {read} read, {transactions_recorded} transactions\n\
         \x20 {unanswered} attempts without a response, {rejected_with_503} with 503; {committed_without_response} of those changes were committed\n\
         \x20 longest wait: {} for patients, {} for the ledger",
        stats.patients_wait, stats.ledger_wait
    );
}

/// Copies the services' logs to where they survive this run.
fn keep_logs(logs: &Path, seed: u64) -> Result<(), Error> {
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
