//! What the page shows of the scrapes: the state of each part, the rates between them, and what waits where.

use std::time::SystemTime;

use serde_json::Value as Json;

use super::{
    ANALYTICS, BILLING, Flow, Inner, PATIENTS, Replica, SERVICES, STALE_AFTER, State, age,
    body::{CountsBody, EdgeBody, MapBody, OutboxBody, PartBody, PartitionBody, ReplicaBody, TasksBody},
};
use crate::time::iso;

impl Inner {
    pub(super) fn partitions(&self) -> Vec<PartitionBody> {
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

    pub(super) fn counts(&self) -> Option<CountsBody> {
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

    /// The part of a service.
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
        let problems = replicas.iter().flat_map(|(address, one)| match &one.error {
            Some(error) => vec![format!("{address} does not answer: {error}")],
            None => problems(&one.reading.health),
        });
        let mut problems: Vec<_> = problems.collect();
        problems.sort();
        problems.dedup();
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
            detail: (!problems.is_empty()).then(|| problems.join("; ")),
        }
    }

    /// A part that services report on in their health documents: degraded if they disagree.
    fn dependency(&self, id: &'static str, kind: &'static str, by: &[(usize, &str)], now: SystemTime) -> PartBody {
        let mut worst = State::Unknown;
        let (mut seen, mut details) = (None, Vec::new());
        for (service, name) in by {
            for one in self.services[*service].values() {
                // Its last health document may no longer be true.
                if one.error.is_some() {
                    continue;
                }
                let component = &one.reading.health["components"][*name];
                if component.is_null() {
                    continue;
                }
                seen = seen.max(one.seen);
                let state = match status(&component["status"]) {
                    State::Up => State::Up,
                    // The service may be merely degraded; its dependency is down.
                    _ => State::Down,
                };
                worst = match (worst, state) {
                    (State::Unknown, state) => state,
                    (State::Up, State::Down) | (State::Down, State::Up) => State::Degraded,
                    (worst, _) => worst,
                };
                details.extend(component["detail"].as_str().map(|detail| format!("{}: {detail}", SERVICES[*service])));
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

    pub(super) fn parts(&self, now: SystemTime) -> Vec<PartBody> {
        vec![
            self.service(PATIENTS, now),
            self.service(BILLING, now),
            self.service(ANALYTICS, now),
            self.dependency("patient-db", "database", &[(PATIENTS, "database")], now),
            self.dependency("billing-db", "database", &[(BILLING, "database")], now),
            self.dependency("kafka", "broker", &[(PATIENTS, "kafka"), (ANALYTICS, "kafka")], now),
            self.dependency("sqlite", "database", &[(ANALYTICS, "state")], now),
        ]
    }

    pub(super) fn body(&self, now: SystemTime) -> MapBody {
        let edge = |id, from, to, per_second| EdgeBody { id, from, to, per_second, breaker: None };
        let breaker =
            self.gauge(PATIENTS, "grpc_client_breaker_open").map(|open| if open > 0.0 { "open" } else { "closed" });
        let calls = EdgeBody {
            breaker: breaker.or(self.last_scrape(PATIENTS, now).map(|_| "closed")),
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

fn status(status: &Json) -> State {
    match status.as_str() {
        Some("UP") => State::Up,
        Some("DEGRADED") => State::Degraded,
        Some("DOWN") => State::Down,
        _ => State::Unknown,
    }
}

/// The components of a health document that are not up, each with its detail.
fn problems(health: &Json) -> Vec<String> {
    let components = health["components"].as_object().into_iter().flatten();
    let failing = components.filter(|(_, component)| status(&component["status"]) != State::Up);
    failing
        .map(|(name, component)| format!("{name}: {}", component["detail"].as_str().unwrap_or("does not work")))
        .collect()
}
