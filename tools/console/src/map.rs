//! What the scrapes have found: the parts of the system, what flows between them, and what waits where.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use serde_json::Value as Json;

use crate::{prometheus::Sample, time::iso};

/// Readings older than this are shown as old.
const STALE_AFTER: Duration = Duration::from_secs(3);
/// Rates are the mean over so much time.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Points of each line of the history, one a second.
const HISTORY: usize = 300;

/// How a part is.
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

/// What flows: edges of the map, and counters of which services they are the sums of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flow {
    Requests,
    Commits,
    Calls,
    Entries,
    Sends,
    Applied,
    Stored,
}

/// What one replica has answered.
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
    /// The last that it has answered.
    reading: Reading,
    seen: Option<SystemTime>,
    /// Whether it has answered the last scrape, and why not.
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
    /// Of each service its replicas, as they were found at the last scrape.
    services: [BTreeMap<SocketAddr, Replica>; 3],
    /// How much has flowed since the console started, with times.
    totals: BTreeMap<Flow, f64>,
    window: VecDeque<(SystemTime, BTreeMap<Flow, f64>)>,
    history: VecDeque<[Option<f64>; 6]>,
    version: u64,
}

/// What journeys need to know of the rest of the system.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// The last offset that analytics has applied, by partition.
    pub(crate) applied: BTreeMap<i64, i64>,
    /// The parts that do not work, with what is known of it.
    pub(crate) troubles: BTreeMap<&'static str, String>,
    pub(crate) lag: Option<i64>,
}

/// A part as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartBody {
    id: &'static str,
    kind: &'static str,
    pub(crate) state: State,
    replicas: Vec<ReplicaBody>,
    seen: Option<String>,
    stale: bool,
    pub(crate) detail: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct ReplicaBody {
    address: String,
    state: State,
    seen: Option<String>,
    version: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct EdgeBody {
    id: &'static str,
    from: &'static str,
    to: &'static str,
    per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartitionBody {
    partition: i64,
    applied: i64,
    lag: i64,
}

/// The map as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MapBody {
    now: String,
    parts: Vec<PartBody>,
    edges: Vec<EdgeBody>,
    outbox: OutboxBody,
    tasks: TasksBody,
    partitions: Vec<PartitionBody>,
    lag: Option<i64>,
    counts: Option<CountsBody>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct OutboxBody {
    pending: Option<f64>,
    oldest_s: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct TasksBody {
    pending: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct CountsBody {
    active: Option<i64>,
    created: Option<i64>,
    updated: Option<i64>,
    deleted: Option<i64>,
}

/// The history as the page draws it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HistoryBody {
    step_s: u32,
    end: String,
    series: BTreeMap<&'static str, Vec<Option<f64>>>,
}

const SERIES: [&str; 6] = ["requests", "commits", "sends", "applied", "outbox", "lag"];

impl Map {
    /// Notes what the replicas of each service have answered, or why not.
    pub(crate) fn note(&self, now: SystemTime, answers: [Vec<(SocketAddr, Result<Reading, String>)>; 3]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *inner;
        for (service, answers) in answers.into_iter().enumerate() {
            let replicas = &mut inner.services[service];
            // A service that is nowhere to be found has its replicas where they were last.
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
                            // What it had counted before the console knew it says nothing about now; a counter that
                            // fell is that of a process started anew.
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

    /// Grows with every scrape.
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

    /// What journeys need to know.
    pub(crate) fn facts(&self, now: SystemTime) -> Facts {
        self.with(|inner| {
            let mut facts = Facts { lag: inner.lag(), ..Facts::default() };
            for partition in inner.partitions() {
                facts.applied.insert(partition.partition, partition.applied);
            }
            for part in inner.parts(now) {
                if matches!(part.state, State::Down | State::Degraded) {
                    facts.troubles.insert(part.id, part.detail.unwrap_or_default());
                }
            }
            facts
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

    /// What waits in the outbox, as far as it is known, and how many events were sent to Kafka and read from it since the
    /// console started.
    pub(crate) fn waiting(&self) -> (f64, f64, f64) {
        self.with(|inner| {
            let outbox = inner.outbox_pending().unwrap_or_default();
            let total = |flow| inner.totals.get(&flow).copied().unwrap_or_default();
            (outbox, total(Flow::Sends), total(Flow::Applied))
        })
    }

    /// Whether nothing waits anywhere, and every service has just said so.
    pub(crate) fn is_drained(&self, now: SystemTime) -> bool {
        self.with(|inner| {
            let is_fresh = (0..SERVICES.len()).all(|service| inner.fresh(service, now).is_some());
            let is_up = inner.services.iter().flat_map(BTreeMap::values).all(|replica| replica.error.is_none());
            let empty = |waiting: Option<f64>| waiting == Some(0.0);
            let outbox = inner.outbox_pending();
            let tasks = inner.gauge(PATIENTS, "billing_tasks_pending");
            is_fresh && is_up && empty(outbox) && tasks.is_none_or(|tasks| tasks == 0.0) && inner.lag() == Some(0)
        })
    }

    /// The addresses of a service, those first that have answered the last scrape.
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
    /// How much of it flows in a second; none before there are two readings, or when the last one is old.
    fn rate(&self, flow: Flow, now: SystemTime) -> Option<f64> {
        let ((first, before), (last, after)) = (self.window.front()?, self.window.back()?);
        let span = age(*last, *first).as_secs_f64();
        let service = match flow {
            Flow::Requests | Flow::Commits | Flow::Sends => PATIENTS,
            Flow::Calls | Flow::Entries => BILLING,
            Flow::Applied | Flow::Stored => ANALYTICS,
        };
        self.fresh(service, now)?;
        let more = after.get(&flow)? - before.get(&flow)?;
        (span > 0.5).then(|| (more / span * 10.0).round() / 10.0)
    }

    /// When the newest reading of a service was taken, unless that is long ago.
    fn fresh(&self, service: usize, now: SystemTime) -> Option<SystemTime> {
        let seen = self.services[service].values().filter_map(|one| one.seen).max()?;
        (age(now, seen) <= STALE_AFTER).then_some(seen)
    }

    /// A gauge of the outbox: while nobody holds the lease of a shard, every replica shows the same.
    fn outbox(&self, name: &str, of_shards: fn(f64, f64) -> f64) -> Option<f64> {
        let mut shards = BTreeMap::<&str, f64>::new();
        for sample in self.services[PATIENTS].values().flat_map(|one| &one.reading.samples) {
            if sample.name == name {
                let shown = shards.entry(sample.label("shard").unwrap_or_default()).or_insert(sample.value);
                *shown = shown.max(sample.value);
            }
        }
        shards.into_values().reduce(of_shards)
    }

    /// Events that wait in the outbox, of all shards.
    fn outbox_pending(&self) -> Option<f64> {
        self.outbox("outbox_pending", |a, b| a + b)
    }

    /// The sum of a gauge over replicas and labels; none if nobody shows it. Values of old readings stay, the part says so.
    fn gauge(&self, service: usize, name: &str) -> Option<f64> {
        let samples = self.services[service].values().flat_map(|one| &one.reading.samples);
        samples.filter(|sample| sample.name == name).map(|sample| sample.value).reduce(|a, b| a + b)
    }

    fn lag(&self) -> Option<i64> {
        self.gauge(ANALYTICS, "kafka_consumer_lag").map(|lag| lag as i64)
    }

    fn partitions(&self) -> Vec<PartitionBody> {
        let summaries = self.services[ANALYTICS].values().filter_map(|one| one.reading.summary.as_ref());
        let mut partitions: Vec<_> = summaries
            .flat_map(|summary| summary["partitions"].as_array().cloned().unwrap_or_default())
            .filter_map(|partition| {
                Some(PartitionBody {
                    partition: partition["partition"].as_i64()?,
                    applied: partition["appliedOffset"].as_i64()?,
                    lag: partition["lag"].as_i64()?,
                })
            })
            .collect();
        partitions.sort_by_key(|partition| partition.partition);
        partitions
    }

    fn counts(&self) -> Option<CountsBody> {
        let mut summaries = self.services[ANALYTICS].values().filter_map(|one| one.reading.summary.as_ref()).peekable();
        summaries.peek()?;
        let summaries: Vec<_> = summaries.collect();
        let sum = |name: &str| summaries.iter().map(|summary| summary[name].as_i64()).sum::<Option<i64>>();
        Some(CountsBody {
            active: sum("activePatients"),
            created: sum("created"),
            updated: sum("updated"),
            deleted: sum("deleted"),
        })
    }

    /// A service's own part.
    fn service(&self, service: usize, now: SystemTime) -> PartBody {
        let replicas = &self.services[service];
        let state_of = |one: &Replica| match (one.seen, &one.error) {
            (None, None) => State::Unknown,
            (_, Some(_)) => State::Down,
            _ => status(&one.reading.health["status"]),
        };
        let states: Vec<_> = replicas.values().map(state_of).collect();
        let state = match states.as_slice() {
            [] => State::Unknown,
            states if states.iter().all(|state| *state == states[0]) => states[0],
            _ => State::Degraded,
        };
        let seen = replicas.values().filter_map(|one| one.seen).max();
        let troubles = replicas.iter().flat_map(|(address, one)| match &one.error {
            Some(error) => vec![format!("{address} does not answer: {error}")],
            None => troubles(&one.reading.health),
        });
        let mut troubles: Vec<_> = troubles.collect();
        troubles.sort();
        troubles.dedup();
        PartBody {
            id: SERVICES[service],
            kind: "service",
            state,
            replicas: replicas
                .iter()
                .map(|(address, one)| ReplicaBody {
                    address: address.to_string(),
                    state: state_of(one),
                    seen: one.seen.map(iso),
                    version: one
                        .reading
                        .samples
                        .iter()
                        .find(|sample| sample.name == "build_info")
                        .and_then(|sample| sample.label("version").map(str::to_owned)),
                })
                .collect(),
            seen: seen.map(iso),
            stale: seen.is_none_or(|seen| age(now, seen) > STALE_AFTER),
            detail: (!troubles.is_empty()).then(|| troubles.join("; ")),
        }
    }

    /// A part that services tell of, as components of their health. The worst that any of them tells counts.
    fn told(&self, id: &'static str, kind: &'static str, by: &[(usize, &str)], now: SystemTime) -> PartBody {
        let mut worst = State::Unknown;
        let (mut seen, mut details) = (None, Vec::new());
        for (service, component) in by {
            for one in self.services[*service].values() {
                // What it told before it fell silent says nothing about now.
                if one.error.is_some() {
                    continue;
                }
                let told = &one.reading.health["components"][*component];
                if told.is_null() {
                    continue;
                }
                seen = seen.max(one.seen);
                let state = match status(&told["status"]) {
                    State::Up => State::Up,
                    // The service absorbs it; the part itself does not work.
                    _ => State::Down,
                };
                worst = match (worst, state) {
                    (State::Unknown, state) => state,
                    (State::Up, State::Down) | (State::Down, State::Up) => State::Degraded,
                    (worst, _) => worst,
                };
                details.extend(told["detail"].as_str().map(|detail| format!("{}: {detail}", SERVICES[*service])));
            }
        }
        details.dedup();
        PartBody {
            id,
            kind,
            state: worst,
            replicas: Vec::new(),
            seen: seen.map(iso),
            stale: seen.is_none_or(|seen| age(now, seen) > STALE_AFTER),
            detail: (!details.is_empty()).then(|| details.join("; ")),
        }
    }

    fn parts(&self, now: SystemTime) -> Vec<PartBody> {
        vec![
            self.service(PATIENTS, now),
            self.service(BILLING, now),
            self.service(ANALYTICS, now),
            self.told("patient-db", "database", &[(PATIENTS, "database")], now),
            self.told("billing-db", "database", &[(BILLING, "database")], now),
            self.told("kafka", "broker", &[(PATIENTS, "kafka"), (ANALYTICS, "kafka")], now),
            self.told("sqlite", "database", &[(ANALYTICS, "state")], now),
        ]
    }

    fn body(&self, now: SystemTime) -> MapBody {
        let edge = |id, from, to, per_second| EdgeBody { id, from, to, per_second, breaker: None };
        let breaker =
            self.gauge(PATIENTS, "grpc_client_breaker_open").map(|open| if open > 0.0 { "open" } else { "closed" });
        let calls = EdgeBody {
            breaker: breaker.or(self.fresh(PATIENTS, now).map(|_| "closed")),
            ..edge("patient-service>billing-service", "patient-service", "billing-service", self.rate(Flow::Calls, now))
        };
        MapBody {
            now: iso(now),
            parts: self.parts(now),
            edges: vec![
                edge("clients>patient-service", "clients", "patient-service", self.rate(Flow::Requests, now)),
                calls,
                edge("billing-service>billing-db", "billing-service", "billing-db", self.rate(Flow::Entries, now)),
                edge("patient-service>patient-db", "patient-service", "patient-db", self.rate(Flow::Commits, now)),
                edge("patient-db>kafka", "patient-db", "kafka", self.rate(Flow::Sends, now)),
                edge("kafka>analytics-service", "kafka", "analytics-service", self.rate(Flow::Applied, now)),
                edge("analytics-service>sqlite", "analytics-service", "sqlite", self.rate(Flow::Stored, now)),
            ],
            outbox: OutboxBody {
                pending: self.outbox_pending(),
                oldest_s: self.outbox("outbox_oldest_age_seconds", f64::max),
            },
            tasks: TasksBody { pending: self.gauge(PATIENTS, "billing_tasks_pending") },
            partitions: self.partitions(),
            lag: self.lag(),
            counts: self.counts(),
        }
    }
}

/// What a service's counters say of what flows through it. Health, metrics and the console's own reads are left out.
fn counters(service: usize, samples: &[Sample]) -> BTreeMap<Flow, f64> {
    let sum = |name: &str, suits: &dyn Fn(&Sample) -> bool| {
        samples.iter().filter(|sample| sample.name == name && suits(sample)).map(|sample| sample.value).sum::<f64>()
    };
    match service {
        PATIENTS => {
            let is_patients =
                |sample: &Sample| sample.label("route").is_some_and(|route| route.starts_with("/patients"));
            let is_write = |sample: &Sample| {
                is_patients(sample)
                    && sample.label("method").is_some_and(|method| ["POST", "PUT", "DELETE"].contains(&method))
                    && sample.label("route") != Some("/patients/:id/billing/transactions")
                    && sample.label("status").is_some_and(|status| status.starts_with('2'))
            };
            BTreeMap::from([
                (Flow::Requests, sum("http_requests_total", &is_patients)),
                (Flow::Commits, sum("http_requests_total", &is_write)),
                (Flow::Sends, sum("relay_published_total", &|_| true)),
            ])
        }
        BILLING => {
            let is_billing =
                |sample: &Sample| sample.label("method").is_some_and(|method| method.contains("BillingService"));
            // Each that is answered well has been a commit, or a read.
            let is_done = |sample: &Sample| {
                is_billing(sample) && sample.label("code").is_some_and(|code| code.eq_ignore_ascii_case("OK"))
            };
            BTreeMap::from([
                (Flow::Calls, sum("grpc_server_calls_total", &is_billing)),
                (Flow::Entries, sum("grpc_server_calls_total", &is_done)),
            ])
        }
        _ => {
            let applied = sum("events_applied_total", &|_| true);
            let read = applied + sum("events_duplicate_total", &|_| true) + sum("events_dead_total", &|_| true);
            BTreeMap::from([(Flow::Applied, read), (Flow::Stored, applied)])
        }
    }
}

fn status(status: &Json) -> State {
    match status.as_str() {
        Some("UP") => State::Up,
        Some("DEGRADED") => State::Degraded,
        Some("DOWN") => State::Down,
        _ => State::Unknown,
    }
}

/// What the components of a health document tell, those apart that are well.
fn troubles(health: &Json) -> Vec<String> {
    let components = health["components"].as_object().into_iter().flatten();
    let troubled = components.filter(|(_, component)| status(&component["status"]) != State::Up);
    troubled
        .map(|(name, component)| format!("{name}: {}", component["detail"].as_str().unwrap_or("does not work")))
        .collect()
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

    fn note(map: &Map, second: u64, posts: &[Result<Reading, String>]) {
        let patients = posts.iter().enumerate().map(|(at, one)| (address(at as u16 + 1), one.clone())).collect();
        map.note(AT(second), [patients, Vec::new(), Vec::new()]);
    }

    fn rate(map: &Map, second: u64) -> Option<f64> {
        map.with(|inner| inner.rate(Flow::Requests, AT(second)))
    }

    #[test]
    fn rates_are_sums_over_replicas_and_survive_a_restart() {
        let map = Map::default();
        assert_eq!(rate(&map, 0), None, "unknown is not 0");
        note(&map, 0, &[answer(1000), answer(50)]);
        note(&map, 1, &[answer(1012), answer(58)]);
        assert_eq!(rate(&map, 1), Some(20.0), "what was counted before says nothing");
        note(&map, 2, &[answer(1032), answer(0)]);
        assert_eq!(rate(&map, 2), Some(20.0));
        note(&map, 3, &[answer(1032), answer(20)]);
        assert_eq!(rate(&map, 3), Some(20.0), "a counter that fell is that of a new process");
    }

    #[test]
    fn what_does_not_answer_is_down_and_keeps_its_old_values() {
        let map = Map::default();
        note(&map, 0, &[answer(1)]);
        note(&map, 1, &[Err("no".to_owned())]);
        note(&map, 5, &[Err("no".to_owned())]);
        let body = serde_json::to_value(map.body(AT(5))).unwrap();
        let part = &body["parts"][0];
        assert_eq!((&part["state"], &part["stale"]), (&json!("down"), &json!(true)));
        assert_eq!(part["seen"], json!(iso(AT(0))));
        assert_eq!(body["outbox"]["pending"], json!(3.0));
        assert_eq!(body["edges"][0]["per_second"], Json::Null, "nothing is known of now");
        assert_eq!(body["parts"][5]["state"], "unknown", "nobody tells of Kafka");
        note(&map, 6, &[answer(1)]);
        let body = serde_json::to_value(map.body(AT(6))).unwrap();
        assert_eq!((&body["parts"][0]["state"], &body["parts"][5]["state"]), (&json!("up"), &json!("up")));
    }
}
