//! Several analytics-services that are members of one consumer group: what they answer during a run, and whether they agree
//! after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::pending,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::Value as Json;
use testbed::{
    Error,
    analytics::{next_offsets, own_summary},
    audit::Auditor,
    http::Client,
};

use crate::clients::SharedStats;

/// How often the members are asked during a run.
const OBSERVATION_INTERVAL: Duration = Duration::from_millis(300);
/// Time for an answer of a member, which may be frozen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Time until the members agree after the last fault: session timeouts, and the generations after them.
const TIMEOUT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// In a run of this length partitions move.
const MOVES_EXPECTED_AFTER: Duration = Duration::from_secs(30);
/// What all members have to answer alike.
const COUNTS: [&str; 5] = ["activePatients", "created", "updated", "deleted", "unknown"];

/// Asks the members during a run. Without several of them it does nothing.
pub(crate) struct Observer {
    clients: Vec<Client>,
    observations: Mutex<Observations>,
}

/// What the members have answered.
#[derive(Default)]
struct Observations {
    /// Who has answered for each partition.
    counted_by: BTreeMap<i64, BTreeSet<usize>>,
    /// Answers with all partitions, and those that said that some are missing.
    whole: usize,
    partial: usize,
    /// The first answer with more patients than clients can have created.
    too_many: Option<String>,
}

impl Observer {
    /// An observer of these members; of one alone there is nothing to observe.
    pub(crate) fn new(members: &[Client]) -> Self {
        let clients = if members.len() > 1 { members.to_vec() } else { Vec::new() };
        let clients = clients.into_iter().map(|client| client.with_timeout(ANSWER_TIMEOUT)).collect();
        Self { clients, observations: Mutex::default() }
    }

    /// Asks until it is dropped, while so many writers create patients.
    pub(crate) async fn observe<T>(&self, stats: &SharedStats, writers: usize) -> T {
        if self.clients.is_empty() {
            return pending().await;
        }
        loop {
            smol::Timer::after(OBSERVATION_INTERVAL).await;
            let shares = join_all(self.clients.iter().map(own)).await;
            let answer = match fastrand::choice(&self.clients) {
                Some(client) => merged(client).await,
                None => None,
            };
            // Each writer waits for the response to one creation at most.
            let most = stats.stats().created + writers;
            let mut all = self.observations();
            for (number, share) in shares.iter().enumerate() {
                for partition in share.iter().flat_map(partitions) {
                    all.counted_by.entry(partition).or_default().insert(number);
                }
            }
            let Some(answer) = answer else { continue };
            let is_partial = answer["partial"] == true;
            *(if is_partial { &mut all.partial } else { &mut all.whole }) += 1;
            if usize::try_from(counts(&answer)[1]).is_ok_and(|created| created > most) {
                all.too_many.get_or_insert_with(|| format!("at most {most} patients were created: {answer}"));
            }
        }
    }

    /// Waits until each partition has one member, and each member has one.
    ///
    /// # Errors
    /// After [`TIMEOUT`]; the error says what they have.
    pub(crate) async fn until_settled(&self, auditor: &Auditor) -> Result<(), Error> {
        if self.clients.is_empty() {
            return Ok(());
        }
        let count = i64::from(kafka::partitions(&auditor.kafka, &auditor.topic).await?);
        let end = Instant::now() + TIMEOUT;
        loop {
            let answers = join_all(self.clients.iter().map(own)).await;
            let shares: Vec<Vec<i64>> =
                answers.iter().map(|answer| answer.iter().flat_map(partitions).collect()).collect();
            let mut all = shares.concat();
            all.sort_unstable();
            if all.into_iter().eq(0..count) && shares.iter().all(|share| !share.is_empty()) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(Error::new(format!("the members have {shares:?} of {count} partitions")));
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    /// What is wrong with the answers: at the end every member has to answer for all of them, with the sum of what each has counted.
    pub(crate) async fn check(&self, length: Duration) -> Vec<String> {
        if self.clients.is_empty() {
            return Vec::new();
        }
        let mut wrong: Vec<String> = self.until_agreed().await.err().into_iter().collect();
        let all = self.observations();
        wrong.extend(all.too_many.clone());
        if length >= MOVES_EXPECTED_AFTER && all.moved() == 0 {
            wrong.push("no partition has moved: that each event is counted once is not proven".to_owned());
        }
        wrong
    }

    async fn until_agreed(&self) -> Result<(), String> {
        let end = Instant::now() + TIMEOUT;
        loop {
            let shares: Vec<_> = join_all(self.clients.iter().map(own)).await.into_iter().flatten().collect();
            let answers: Vec<_> = join_all(self.clients.iter().map(merged)).await.into_iter().flatten().collect();
            let mut sum = [0; COUNTS.len()];
            for share in shares.iter().map(counts) {
                sum.iter_mut().zip(share).for_each(|(sum, share)| *sum += share);
            }
            let is_right = |answer: &Json| answer["partial"] != true && counts(answer) == sum;
            let is_alike = |name| answers.iter().all(|answer| answer[name] == answers[0][name]);
            if answers.len() == self.clients.len()
                && answers.iter().all(is_right)
                && ["ageBands", "partitions"].into_iter().all(is_alike)
            {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("the members answer differently: {answers:?}, and have counted {sum:?}"));
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    fn observations(&self) -> MutexGuard<'_, Observations> {
        // Nothing panics while it is held.
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observations {
    /// The number of partitions that several members have counted.
    fn moved(&self) -> usize {
        self.counted_by.values().filter(|members| members.len() > 1).count()
    }
}

impl fmt::Display for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.observations();
        if self.clients.is_empty() {
            return Ok(());
        }
        let (partitions, moved) = (all.counted_by.len(), all.moved());
        writeln!(
            f,
            "  analytics: {} members, {moved} of {partitions} partitions were counted by several; {} answers of all, {} partial ones",
            self.clients.len(),
            all.whole,
            all.partial
        )
    }
}

/// What a member has counted itself; none if it does not answer.
async fn own(client: &Client) -> Option<Json> {
    own_summary(client).await.ok()
}

/// What a member answers for all of them; none if it does not answer.
async fn merged(client: &Client) -> Option<Json> {
    let response = client.get("/analytics/summary").await.ok()?;
    (response.status == 200).then(|| response.json())
}

fn counts(summary: &Json) -> [i64; COUNTS.len()] {
    COUNTS.map(|name| summary[name].as_i64().unwrap_or_default())
}

fn partitions(summary: &Json) -> impl Iterator<Item = i64> + use<> {
    next_offsets(&summary["partitions"]).into_keys()
}
