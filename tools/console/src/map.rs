//! The map of the system from the scrapes: its parts, the rates between them, and what waits where.
//!
//! A part is a service, a database, a broker or analytics-service's SQLite file.

mod body;
mod flow;
mod view;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use serde_json::Value as Json;

use self::{
    body::{HistoryBody, MapBody, PartBody},
    flow::{Flow, counters},
};
use crate::{prometheus::Sample, time::iso};

/// Scrapes older than this are shown as stale.
const STALE_AFTER: Duration = Duration::from_secs(3);
/// The window over which rates are averaged.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Points of each line of the history, one a second.
const HISTORY: usize = 300;

/// The state of a part or of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Up,
    Degraded,
    Down,
    Unknown,
}

/// The services that are scraped.
pub(crate) const SERVICES: [&str; 3] = ["patient-service", "billing-service", "analytics-service"];
pub(crate) const PATIENTS: usize = 0;
pub(crate) const BILLING: usize = 1;
pub(crate) const ANALYTICS: usize = 2;

/// What one replica has answered to a scrape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// The readiness document.
    pub(crate) health: Json,
    pub(crate) samples: Vec<Sample>,
    /// The summary, of analytics-service alone.
    pub(crate) summary: Option<Json>,
}

#[derive(Clone, Debug)]
struct Replica {
    /// The last successful scrape.
    reading: Reading,
    seen: Option<SystemTime>,
    /// Why the last scrape failed, if it did.
    error: Option<String>,
    counters: BTreeMap<Flow, f64>,
}

/// The map. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The replicas of each service at the last scrape.
    services: [BTreeMap<SocketAddr, Replica>; 3],
    /// How much has flowed since the console started.
    totals: BTreeMap<Flow, f64>,
    window: VecDeque<(SystemTime, BTreeMap<Flow, f64>)>,
    history: VecDeque<[Option<f64>; 6]>,
    version: u64,
}

/// The state of the system, as far as journeys depend on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SystemStatus {
    /// The last offset that analytics has applied, by partition.
    pub(crate) applied: BTreeMap<i64, i64>,
    /// The parts that are down or degraded, each with the reason.
    pub(crate) unhealthy: BTreeMap<&'static str, String>,
    pub(crate) lag: Option<i64>,
}

const SERIES: [&str; 6] = ["requests", "commits", "sends", "applied", "outbox", "lag"];

impl Map {
    /// Records one scrape: what each replica has answered, or why not.
    pub(crate) fn record(&self, now: SystemTime, answers: [Vec<(SocketAddr, Result<Reading, String>)>; 3]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *inner;
        for (service, answers) in answers.into_iter().enumerate() {
            let replicas = &mut inner.services[service];
            // If the name of a service does not resolve, its replicas stay as they were.
            if !answers.is_empty() {
                replicas.retain(|address, _| answers.iter().any(|(other, _)| other == address));
            }
            for (address, answer) in answers {
                let replica = replicas.entry(address).or_insert_with(|| Replica {
                    reading: Reading::default(),
                    seen: None,
                    error: None,
                    counters: BTreeMap::new(),
                });
                match answer {
                    Ok(reading) => {
                        let counters = counters(service, &reading.samples);
                        for (flow, count) in &counters {
                            // The count at the first scrape is the baseline; a counter that fell belongs to a
                            // restarted process.
                            let more = match replica.counters.get(flow) {
                                Some(before) if before <= count => count - before,
                                Some(_) => *count,
                                None if replica.seen.is_some() => *count,
                                None => 0.0,
                            };
                            *inner.totals.entry(*flow).or_default() += more;
                        }
                        *replica = Replica { reading, seen: Some(now), error: None, counters };
                    }
                    Err(error) => {
                        replica.error = Some(error);
                    }
                }
            }
        }
        inner.window.push_back((now, inner.totals.clone()));
        while inner.window.len() > 2 && inner.window.get(1).is_some_and(|(at, _)| age(now, *at) >= RATE_WINDOW) {
            inner.window.pop_front();
        }
        inner.version += 1;
        let point = [
            inner.rate(Flow::Requests, now),
            inner.rate(Flow::Commits, now),
            inner.rate(Flow::Sends, now),
            inner.rate(Flow::Applied, now),
            inner.outbox_pending(),
            inner.gauge(ANALYTICS, "kafka_consumer_lag"),
        ];
        inner.history.push_back(point);
        if inner.history.len() > HISTORY {
            inner.history.pop_front();
        }
    }

    /// The number of scrapes.
    pub(crate) fn version(&self) -> u64 {
        self.with(|inner| inner.version)
    }

    pub(crate) fn body(&self, now: SystemTime) -> MapBody {
        self.with(|inner| inner.body(now))
    }

    pub(crate) fn history(&self, now: SystemTime) -> HistoryBody {
        self.with(|inner| {
            let line = |at: usize| inner.history.iter().map(|point| point[at]).collect();
            let series = SERIES.iter().enumerate().map(|(at, name)| (*name, line(at))).collect();
            HistoryBody { step_s: 1, end: iso(now), series }
        })
    }

    /// The state of the system for journeys.
    pub(crate) fn system_status(&self, now: SystemTime) -> SystemStatus {
        self.with(|inner| {
            let mut status = SystemStatus { lag: inner.lag(), ..SystemStatus::default() };
            for partition in inner.partitions() {
                status.applied.insert(partition.partition, partition.applied);
            }
            for part in inner.parts(now) {
                if matches!(part.state, State::Down | State::Degraded) {
                    status.unhealthy.insert(part.id, part.detail.unwrap_or_default());
                }
            }
            status
        })
    }

    /// A part with the health document and the samples of its first replica; none if there is no such part.
    pub(crate) fn part(&self, id: &str, now: SystemTime) -> Option<(PartBody, Json, Vec<Sample>)> {
        self.with(|inner| {
            let part = inner.parts(now).into_iter().find(|part| part.id == id)?;
            let service = SERVICES.iter().position(|name| *name == id);
            let replica = service.and_then(|service| inner.services[service].values().find(|one| one.seen.is_some()));
            let (health, samples) =
                replica.map(|one| (one.reading.health.clone(), one.reading.samples.clone())).unwrap_or_default();
            Some((part, health, samples))
        })
    }

    /// Events in the outbox (0 if unknown), and events sent to Kafka and read from it since the console started.
    pub(crate) fn backlog(&self) -> (f64, f64, f64) {
        self.with(|inner| {
            let outbox = inner.outbox_pending().unwrap_or_default();
            let total = |flow| inner.totals.get(&flow).copied().unwrap_or_default();
            (outbox, total(Flow::Sends), total(Flow::Applied))
        })
    }

    /// Whether outbox, billing tasks and topic are empty, by a recent scrape of every replica.
    pub(crate) fn is_drained(&self, now: SystemTime) -> bool {
        self.with(|inner| {
            let is_recent = (0..SERVICES.len()).all(|service| inner.last_scrape(service, now).is_some());
            let is_up = inner.services.iter().flat_map(BTreeMap::values).all(|replica| replica.error.is_none());
            let empty = |pending: Option<f64>| pending == Some(0.0);
            let outbox = inner.outbox_pending();
            let tasks = inner.gauge(PATIENTS, "billing_tasks_pending");
            is_recent && is_up && empty(outbox) && tasks.is_none_or(|tasks| tasks == 0.0) && inner.lag() == Some(0)
        })
    }

    /// The addresses of a service; those that have answered the last scrape come first.
    pub(crate) fn addresses(&self, service: usize) -> Vec<SocketAddr> {
        self.with(|inner| {
            let mut addresses: Vec<_> = inner.services[service]
                .iter()
                .map(|(address, one)| (one.error.is_some() || one.seen.is_none(), *address))
                .collect();
            addresses.sort();
            addresses.into_iter().map(|(_, address)| address).collect()
        })
    }

    fn with<T>(&self, read: impl FnOnce(&Inner) -> T) -> T {
        // Nothing panics while it is held.
        read(&self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    /// The rate per second; none before there are two scrapes, or when the last one is stale.
    fn rate(&self, flow: Flow, now: SystemTime) -> Option<f64> {
        let ((first, before), (last, after)) = (self.window.front()?, self.window.back()?);
        let span = age(*last, *first).as_secs_f64();
        let service = match flow {
            Flow::Requests | Flow::Commits | Flow::Sends => PATIENTS,
            Flow::Calls | Flow::Entries => BILLING,
            Flow::Applied | Flow::Stored => ANALYTICS,
        };
        self.last_scrape(service, now)?;
        let more = after.get(&flow)? - before.get(&flow)?;
        (span > 0.5).then(|| (more / span * 10.0).round() / 10.0)
    }

    /// The time of the last successful scrape of a service, unless it is stale.
    fn last_scrape(&self, service: usize, now: SystemTime) -> Option<SystemTime> {
        let seen = self.services[service].values().filter_map(|one| one.seen).max()?;
        (age(now, seen) <= STALE_AFTER).then_some(seen)
    }

    /// A gauge of the outbox over all shards: while no replica holds the lease of a shard, each exports the same value.
    fn outbox(&self, name: &str, of_shards: fn(f64, f64) -> f64) -> Option<f64> {
        let mut shards = BTreeMap::<&str, f64>::new();
        for sample in self.services[PATIENTS].values().flat_map(|one| &one.reading.samples) {
            if sample.name == name {
                let value = shards.entry(sample.label("shard").unwrap_or_default()).or_insert(sample.value);
                *value = value.max(sample.value);
            }
        }
        shards.into_values().reduce(of_shards)
    }

    /// Events in the outbox, of all shards.
    fn outbox_pending(&self) -> Option<f64> {
        self.outbox("outbox_pending", |a, b| a + b)
    }

    /// The sum of a gauge over replicas and labels; none if no replica exports it. Stale values count: the part is marked.
    fn gauge(&self, service: usize, name: &str) -> Option<f64> {
        let samples = self.services[service].values().flat_map(|one| &one.reading.samples);
        samples.filter(|sample| sample.name == name).map(|sample| sample.value).reduce(|a, b| a + b)
    }

    fn lag(&self) -> Option<i64> {
        self.gauge(ANALYTICS, "kafka_consumer_lag").map(|lag| lag as i64)
    }
}

fn age(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::prometheus::samples;

    const AT: fn(u64) -> SystemTime = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);

    fn answer(posts: u64) -> Result<Reading, String> {
        let text = format!(
            "http_requests_total{{method=\"POST\",route=\"/patients\",status=\"201\"}} {posts}\noutbox_pending{{shard=\"0\"}} 3\n"
        );
        Ok(Reading {
            health: json!({"status": "UP", "components": {"kafka": {"status": "UP"}}}),
            samples: samples(&text),
            summary: None,
        })
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn record(map: &Map, second: u64, posts: &[Result<Reading, String>]) {
        let patients = posts.iter().enumerate().map(|(at, one)| (address(at as u16 + 1), one.clone())).collect();
        map.record(AT(second), [patients, Vec::new(), Vec::new()]);
    }

    fn rate(map: &Map, second: u64) -> Option<f64> {
        map.with(|inner| inner.rate(Flow::Requests, AT(second)))
    }

    #[test]
    fn rates_are_sums_over_replicas_and_survive_a_restart() {
        let map = Map::default();
        assert_eq!(rate(&map, 0), None, "unknown is not 0");
        record(&map, 0, &[answer(1000), answer(50)]);
        record(&map, 1, &[answer(1012), answer(58)]);
        assert_eq!(rate(&map, 1), Some(20.0), "the first count is the baseline");
        record(&map, 2, &[answer(1032), answer(0)]);
        assert_eq!(rate(&map, 2), Some(20.0));
        record(&map, 3, &[answer(1032), answer(20)]);
        assert_eq!(rate(&map, 3), Some(20.0), "a counter that fell belongs to a new process");
    }

    #[test]
    fn what_does_not_answer_is_down_and_keeps_its_old_values() {
        let map = Map::default();
        record(&map, 0, &[answer(1)]);
        record(&map, 1, &[Err("no".to_owned())]);
        record(&map, 5, &[Err("no".to_owned())]);
        let body = serde_json::to_value(map.body(AT(5))).unwrap();
        let part = &body["parts"][0];
        assert_eq!((&part["state"], &part["stale"]), (&json!("down"), &json!(true)));
        assert_eq!(part["seen"], json!(iso(AT(0))));
        assert_eq!(body["outbox"]["pending"], json!(3.0));
        assert_eq!(body["edges"][0]["per_second"], Json::Null, "there is no recent scrape");
        assert_eq!(body["parts"][5]["state"], "unknown", "no service reports on Kafka");
        record(&map, 6, &[answer(1)]);
        let body = serde_json::to_value(map.body(AT(6))).unwrap();
        assert_eq!((&body["parts"][0]["state"], &body["parts"][5]["state"]), (&json!("up"), &json!("up")));
    }
}
