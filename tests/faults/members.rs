//! Three analytics-services in one consumer group, while they join, leave, die, freeze and get more partitions.

use std::{fs, time::Duration};

use kafka::testing::add_partitions;
use serde_json::Value as Json;
use testbed::{
    Signal, analytics, audit::Auditor, broker::Kind, service::Service, system::System, until, writers::Writers,
};

use crate::{
    disk,
    support::{TIMEOUT, audit_by, logged, random_pause, register_many, system, until_readiness},
};

mod on_kafka_alone {
    use super::*;

    #[test]
    fn members_that_join_leave_die_and_freeze_count_every_event_once() {
        members_under_faults(Kind::Kafka);
    }

    #[test]
    fn added_partitions_are_counted_by_the_members() {
        added_partitions(Kind::Kafka);
    }

    #[test]
    fn in_a_namespace_partitions_of_a_member_with_a_full_disk_go_to_another() {
        full_disk(Kind::Kafka);
    }
}

/// The shortest that brokers allow by default.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
const SETTINGS: [(&str, &str); 2] = [("PARTITIONS", "group"), ("KAFKA_SESSION_TIMEOUT", "6s")];

/// The members of a group, beside those of the system.
struct Members {
    system: System,
    others: Vec<Service>,
}

impl Members {
    /// Starts a system with its analytics-service as one of `count` members.
    async fn start(kind: Kind, count: usize) -> Self {
        let group = format!("group-{:016x}", fastrand::u64(..));
        let settings = [&SETTINGS[..], &[("KAFKA_CONSUMER_GROUP", &group)]].concat();
        let system = system(kind, 1, &settings).await;
        let mut members = Self { system, others: Vec::new() };
        for _ in 1..count {
            members.start_another();
        }
        for service in &mut members.others {
            service.until_ready().await.unwrap();
        }
        members
    }

    fn start_another(&mut self) {
        let mut service = self.system.another_analytics(self.others.len() + 1).start().unwrap();
        self.system.scratch.guard(service.process()).unwrap();
        self.others.push(service);
    }

    fn get(&mut self, number: usize) -> &mut Service {
        if number == 0 { &mut self.system.analytics } else { &mut self.others[number - 1] }
    }

    fn all(&self) -> impl Iterator<Item = &Service> {
        std::iter::once(&self.system.analytics).chain(&self.others)
    }

    fn restart(&mut self, number: usize) {
        if number == 0 {
            self.system.restart_without_waiting(|system| &mut system.analytics).unwrap();
        } else {
            let service = &mut self.others[number - 1];
            service.restart().unwrap();
            self.system.scratch.guard(service.process()).unwrap();
        }
    }

    /// The partitions of each member.
    async fn partitions(&self) -> Vec<Vec<i64>> {
        let mut partitions = Vec::new();
        for service in self.all() {
            partitions.push(partitions_of(&own_summary(service).await.unwrap_or_default()));
        }
        partitions
    }

    /// Waits until each of the partitions has one member, and these members have some.
    async fn until_assigned(&self, count: i64, members: &[usize]) {
        let condition = format!("{count} partitions are assigned to {members:?}");
        until(&condition, async || {
            let partitions = self.partitions().await;
            let have: Vec<_> = (0..partitions.len()).filter(|number| !partitions[*number].is_empty()).collect();
            let mut all = partitions.concat();
            all.sort_unstable();
            all == (0..count).collect::<Vec<_>>() && have == members
        })
        .await;
    }

    /// Stops the writers, and compares what the members have counted with the topic and the databases.
    async fn audit(&self, writers: Writers) {
        let (written, acknowledged) = writers.stop().await;
        assert!(written.unexpected.is_empty(), "{written}");
        let mut auditor = Auditor::of(&self.system);
        auditor.analytics = self.all().map(Service::client).collect();
        let report = audit_by(&auditor, &acknowledged).await;
        println!("{written}\n{report}");
        // The audit has asked each for its own share. Each also answers for all of them.
        let names = ["partial", "activePatients", "created", "updated", "deleted", "ageBands", "partitions"];
        until("every member has the same answer", async || {
            let mut answers = Vec::new();
            for service in self.all() {
                let answer = service.client().get("/analytics/summary").await.unwrap().json();
                answers.push(names.map(|name| answer[name].clone()));
            }
            let is_whole = answers[0][0] != true && answers[0][6].as_array().is_some_and(|all| all.len() == 3);
            is_whole && answers.iter().all(|answer| *answer == answers[0])
        })
        .await;
    }
}

/// What one member has counted; none if it does not answer.
async fn own_summary(service: &Service) -> Option<Json> {
    analytics::own_summary(&service.client()).await.ok()
}

/// The other two of three members.
fn others(number: usize) -> Vec<usize> {
    (0..3).filter(|other| *other != number).collect()
}

fn partitions_of(summary: &Json) -> Vec<i64> {
    analytics::next_offsets(&summary["partitions"]).into_keys().collect()
}

fn members_under_faults(kind: Kind) {
    runtime::block_on(2, async {
        let mut members = Members::start(kind, 3).await;
        members.until_assigned(3, &[0, 1, 2]).await;
        let writers = Writers::start(&[members.system.patients[0].address()], 4);
        let more = async |writers: &Writers| {
            writers.until(writers.acknowledged().count() + 20, TIMEOUT).await.unwrap();
            random_pause(500).await;
        };
        for number in [0, 1, 2] {
            more(&writers).await;
            // It leaves, and the others take its partition over at once.
            members.get(number).stop().await;
            members.until_assigned(3, &others(number)).await;
            more(&writers).await;
            members.restart(number);
            members.until_assigned(3, &[0, 1, 2]).await;
        }
        for number in [2, 0] {
            more(&writers).await;
            members.get(number).process().kill().await;
            members.until_assigned(3, &others(number)).await;
            more(&writers).await;
            members.restart(number);
            members.until_assigned(3, &[0, 1, 2]).await;
        }
        for number in [1, 0] {
            more(&writers).await;
            members.get(number).process().signal(Signal::STOP);
            // The others have its partition meanwhile, and it does not know it yet.
            until("the others have the partitions of the frozen one", async || {
                let mut assigned = Vec::new();
                for other in others(number) {
                    let service = members.all().nth(other).unwrap();
                    assigned.extend(partitions_of(&own_summary(service).await.unwrap()));
                }
                assigned.len() == 3
            })
            .await;
            smol::Timer::after(SESSION_TIMEOUT).await;
            members.get(number).process().signal(Signal::CONT);
            more(&writers).await;
            members.until_assigned(3, &[0, 1, 2]).await;
        }
        members.audit(writers).await;
    });
}

fn full_disk(kind: Kind) {
    runtime::block_on(2, async {
        let mut members = Members::start(kind, 1).await;
        let disk = disk::restart_on_small_disk(&mut members.system, "size=16m").await;
        members.until_assigned(3, &[0]).await;
        let writers = Writers::start(&[members.system.patients[0].address()], 4);
        writers.until(20, TIMEOUT).await.unwrap();
        let filler = disk::fill(&disk);
        until_readiness(&members.system.analytics, "state", 503, "DOWN").await;
        members.start_another();
        // The first one answers from its last counts.
        until("the other one has all partitions", async || {
            partitions_of(&own_summary(&members.others[0]).await.unwrap_or_default()).len() == 3
        })
        .await;
        writers.until(writers.acknowledged().count() + 20, TIMEOUT).await.unwrap();
        fs::remove_file(&filler).unwrap();
        until_readiness(&members.system.analytics, "state", 200, "UP").await;
        members.until_assigned(3, &[0, 1]).await;
        for service in members.all() {
            until("the lag is that of the own partitions", async || {
                let partitions = partitions_of(&own_summary(service).await.unwrap());
                lag_partitions(service).await == partitions
            })
            .await;
        }
        members.audit(writers).await;
    });
}

/// The partitions whose lag a service exports.
async fn lag_partitions(service: &Service) -> Vec<i64> {
    let metrics = service.client().get("/metrics").await.unwrap().text();
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("kafka_consumer_lag{partition=\""));
    let mut partitions: Vec<i64> =
        lines.filter_map(|line| line.split('"').next()).map(|partition| partition.parse().unwrap()).collect();
    partitions.sort_unstable();
    partitions
}

fn added_partitions(kind: Kind) {
    runtime::block_on(2, async {
        let members = Members::start(kind, 3).await;
        members.until_assigned(3, &[0, 1, 2]).await;
        let writers = Writers::start(&[members.system.patients[0].address()], 4);
        writers.until(20, TIMEOUT).await.unwrap();
        // The keys move to other partitions: no patient may have events in flight.
        let (written, acknowledged) = writers.stop().await;
        assert!(written.unexpected.is_empty(), "{written}");
        let mut auditor = Auditor::of(&members.system);
        auditor.analytics = members.all().map(Service::client).collect();
        audit_by(&auditor, &acknowledged).await;
        add_partitions(&auditor.kafka, &auditor.topic, 6).await.unwrap();
        members.until_assigned(6, &[0, 1, 2]).await;
        let created = async || {
            let mut created = 0;
            for service in members.all() {
                created += own_summary(service).await.unwrap()["created"].as_i64().unwrap();
            }
            created
        };
        let before = created().await;
        register_many(&members.system.patient_client(), &acknowledged, 30).await;
        until("the events of all partitions are counted", async || created().await == before + 30).await;
        for message in [
            "partitions were added to the topic: the consumer group assigns them",
            "patients whose later events are on an added partition count twice, if another instance has their previous \
             partition",
        ] {
            until(message, async || members.all().any(|service| logged(service, message) > 0)).await;
        }
    });
}
