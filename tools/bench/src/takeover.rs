//! How long the partition of a dead analytics-service is without its counts: a new owner that has to read it from its beginning,
//! against one that has kept a copy (`STANDBYS=1`).

use std::time::{Duration, Instant};

use serde_json::Value as Json;
use testbed::{
    analytics::{next_offsets, own_summary},
    http::Client,
    service::Service,
};

use crate::{
    Failure, Outcome,
    fixture::Fixture,
    load::figure,
    progress::step,
    replay::{PARTITIONS, launch, publish},
    results::Results,
};

/// The shortest that brokers allow by default.
const SESSION_TIMEOUT: &str = "6s";
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Timeout of each step.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How long a partition was without its counts.
struct Takeover {
    /// Its patients.
    patients: u64,
    /// From its owner's death until the other one has counted all of them.
    after_death: Duration,
    /// From the assignment to the other one until then.
    after_assignment: Duration,
}

pub(crate) async fn measure(fixture: &Fixture, quick: bool, results: &mut Results) -> Outcome {
    // A third of them is in the partition of the one that dies.
    let patients = if quick { 300_000 } else { 3_000_000 };
    for (key, standbys, how) in [("cold", "0", "without a copy"), ("standby", "1", "with a copy")] {
        let Takeover { patients, after_death, after_assignment } = take_over(fixture, patients, key, standbys).await?;
        let what = format!("new owner of a partition of {patients} patients, {how}");
        let figures = [
            ("after-assignment", "from its assignment", after_assignment),
            ("after-death", "from the death", after_death),
        ];
        for (name, since, time) in figures {
            results.figure(&format!("takeover-{key}-{name}"), &format!("{what}, {since}"), "s", time.as_secs_f64());
        }
    }
    Ok(())
}

/// Starts two members, fills the topic, and kills the one with fewer partitions.
async fn take_over(fixture: &Fixture, events: u64, key: &str, standbys: &str) -> Outcome<Takeover> {
    let topic = format!("takeover-{key}.patient");
    kafka::create_topic(&fixture.broker.settings("bench"), &topic, PARTITIONS).await?;
    let mut members = Vec::new();
    for number in 0..2 {
        let group = format!("takeover-{key}");
        let settings = [
            ("PARTITIONS", "group"),
            ("KAFKA_CONSUMER_GROUP", &group),
            ("KAFKA_SESSION_TIMEOUT", SESSION_TIMEOUT),
            ("STANDBYS", standbys),
        ];
        let mut service = launch(fixture, &topic, format!("takeover-{key}-{number}"), &settings).start()?;
        fixture.guard(service.process())?;
        members.push(service);
    }
    let clients: Vec<_> = members.iter().map(Service::client).collect();
    // Each has to begin with its own partitions, and has nothing of the other's.
    let assigned = until(&clients, |all| shares(all) == [1, 2] || shares(all) == [2, 1]);
    step(&format!("Starting two members ({key})"), assigned).await?;
    step(&format!("Publishing {events} events"), publish(fixture, &topic, events)).await?;
    let is_copied = |all: &[Json]| {
        let copied = all.iter().flat_map(|summary| next_offsets(&summary["standbys"]).into_values());
        standbys == "0" || copied.sum::<i64>() as u64 == events
    };
    let counted = until(&clients, |all| all.iter().map(created).sum::<u64>() == events && is_copied(all));
    let all = step("Counting them", counted).await?;
    let dies = usize::from(shares(&all) == [2, 1]);
    let (patients, other) = (created(&all[dies]), vec![clients[1 - dies].clone()]);
    let killed = Instant::now();
    members[dies].process().kill().await;
    let every = usize::try_from(PARTITIONS)?;
    let take_over = async {
        until(&other, |all| shares(all) == [every]).await?;
        let assigned = Instant::now();
        until(&other, |all| created(&all[0]) == events).await?;
        Ok::<_, Failure>((killed.elapsed(), assigned.elapsed()))
    };
    let (after_death, after_assignment) = step("Waiting for the new owner", take_over).await?;
    members[1 - dies].stop().await;
    Ok(Takeover { patients, after_death, after_assignment })
}

/// Waits until what the members have themselves is as expected.
async fn until(members: &[Client], is_expected: impl Fn(&[Json]) -> bool) -> Outcome<Vec<Json>> {
    let begin = Instant::now();
    loop {
        let mut all = Vec::new();
        for client in members {
            // Until it listens there is no answer.
            all.push(own_summary(client).await.unwrap_or_default());
        }
        if is_expected(&all) {
            return Ok(all);
        }
        if begin.elapsed() > TIMEOUT {
            return Err(Failure(format!("the members are not as expected: {all:?}")));
        }
        smol::Timer::after(POLL_INTERVAL).await;
    }
}

/// How many partitions each has.
fn shares(all: &[Json]) -> Vec<usize> {
    all.iter().map(|summary| next_offsets(&summary["partitions"]).len()).collect()
}

fn created(summary: &Json) -> u64 {
    figure(summary, "/created") as u64
}
