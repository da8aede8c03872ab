//! Several instances as processes, each with its own partitions: every one of them answers for all.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use codec::event::EventKind::{Created, Deleted, Updated};
use serde_json::{Value as Json, json};
use testbed::{
    Signal, broker, ports,
    service::{Launch, Service},
};
use uuid::Uuid;

use crate::harness::{Harness, PARTITIONS, record, with_topic};

mod in_a_group {
    use super::*;

    // Nisshi's groups do not work with several members.
    #[test]
    fn every_member_answers_for_all_partitions_while_members_come_and_go() {
        every_member_of_a_group_answers_for_all_partitions_while_members_come_and_go(broker::Kind::Kafka);
    }
}

testbed::on_each_broker!(
    every_instance_answers_for_all_partitions,
    a_header_that_nobody_has_checked_leaves_answers_whole,
    an_answer_without_an_instance_is_partial_until_it_is_back,
    a_stream_of_one_instance_has_the_changes_of_the_others,
);

const TIMEOUT: Duration = Duration::from_secs(60);

/// One instance for each partition of the topic; they know each other's addresses.
struct Instances(Vec<Service>);

fn launch(topic: &Harness, number: usize, port: u16, members: &[(&str, &str)]) -> Launch {
    let directory = topic.scratch().path().to_owned();
    let state = directory.join(format!("state-{number}.sqlite")).display().to_string();
    let (bootstrap, dead_letter_topic) = (topic.kafka.bootstrap.0[0].to_string(), topic.dead_letter_topic());
    let own = [
        ("KAFKA_BOOTSTRAP_SERVERS", bootstrap.as_str()),
        ("KAFKA_TOPIC", &topic.topic),
        ("KAFKA_DEAD_LETTER_TOPIC", &dead_letter_topic),
        ("STATE_FILE", &state),
    ];
    let environment = own.iter().chain(members).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Launch {
        name: "analytics-service",
        port,
        environment: environment.collect(),
        directory,
        label: format!("analytics-{number}"),
        access: None,
    }
}

fn start(topic: &Harness, launch: Launch) -> Service {
    let mut service = launch.start().unwrap();
    topic.scratch().guard(service.process()).unwrap();
    service
}

impl Instances {
    async fn start(topic: &Harness) -> Self {
        let ports: Vec<u16> = (0..PARTITIONS).map(|_| ports::free()).collect();
        // Each list has the instance itself too: one list serves all.
        let members: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let members = members.join(",");
        let launches = ports.iter().enumerate().map(|(partition, port)| {
            let fixed = [("KAFKA_CONSUMER_GROUP", "none"), ("PARTITIONS", &partition.to_string())];
            launch(topic, partition, *port, &[&fixed[..], &[("ANALYTICS_MEMBERS", &members)]].concat())
        });
        Self::start_all(topic, launches.collect()).await
    }

    /// As many members of a consumer group.
    async fn start_group(topic: &Harness) -> Self {
        let group = format!("group-{:016x}", fastrand::u64(..));
        let settings =
            [("PARTITIONS", "group"), ("KAFKA_CONSUMER_GROUP", group.as_str()), ("KAFKA_SESSION_TIMEOUT", "6s")];
        let launches = (0..PARTITIONS as usize).map(|number| launch(topic, number, ports::free(), &settings));
        Self::start_all(topic, launches.collect()).await
    }

    async fn start_all(topic: &Harness, launches: Vec<Launch>) -> Self {
        let mut services: Vec<_> = launches.into_iter().map(|launch| start(topic, launch)).collect();
        for service in &mut services {
            service.until_ready().await.unwrap();
        }
        Self(services)
    }

    /// Waits until each of these instances has the same answer, which is as expected.
    async fn until(&self, instances: &[usize], what: &str, is_expected: impl Fn(&Json) -> bool) -> Json {
        let end = Instant::now() + TIMEOUT;
        loop {
            let mut answers = Vec::new();
            for at in instances {
                answers.push(summary(&self.0[*at]).await);
            }
            if answers.iter().all(&is_expected) && answers.windows(2).all(|pair| pair[0] == pair[1]) {
                return answers.remove(0);
            }
            assert!(Instant::now() < end, "{what}: {answers:?}");
            smol::Timer::after(Duration::from_millis(50)).await;
        }
    }
}

async fn summary(service: &Service) -> Json {
    service.client().get("/analytics/summary").await.map(|response| response.json()).unwrap_or_default()
}

/// Waits until the series of an instance has this number, and names these partitions as missing. On a busy machine an instance
/// may miss the deadline of an answer.
async fn until_registrations(service: &Service, registrations: i64, missing: Option<&str>) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let response = service.client().get("/analytics/registrations?interval=year").await.unwrap();
        let is_expected = response.json() == json!([{"period": "2024", "registrations": registrations}]);
        if is_expected && response.header("missing-partitions") == missing {
            return;
        }
        assert!(Instant::now() < end, "{} {:?}", response.text(), response.header("missing-partitions"));
        smol::Timer::after(Duration::from_millis(50)).await;
    }
}

fn partitions(summary: &Json) -> BTreeSet<i64> {
    let partitions = summary["partitions"].as_array().into_iter().flatten();
    partitions.filter_map(|partition| partition["partition"].as_i64()).collect()
}

/// Whether it has these counts of all partitions, and says so.
fn is_whole(summary: &Json, active: i64, created: i64) -> bool {
    summary["activePatients"] == active
        && summary["created"] == created
        && partitions(summary) == (0..PARTITIONS.into()).collect()
        && summary.get("partial").is_none()
        && summary.get("missingPartitions").is_none()
}

fn every_instance_answers_for_all_partitions(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let instances = Instances::start(&topic).await;
        let patients: Vec<_> = (0..30).map(|_| Uuid::now_v7()).collect();
        for (number, patient) in (0..).zip(&patients) {
            let mut records = vec![record(*patient, Created, 1), record(*patient, Updated, 2)];
            if number < 3 {
                records.push(record(*patient, Deleted, 3));
            }
            topic.send(number % PARTITIONS, records).await;
        }
        let whole = instances.until(&[0, 1, 2], "all are whole", |summary| is_whole(summary, 27, 30)).await;
        assert_eq!((&whole["updated"], &whole["deleted"]), (&json!(30), &json!(3)));
        let ages: i64 =
            whole["ageBands"].as_array().unwrap().iter().map(|band| band["patients"].as_i64().unwrap()).sum();
        assert_eq!(ages, 27);
        for service in &instances.0 {
            until_registrations(service, 30, None).await;
            let own = service.client().get("/analytics/summary?scope=instance").await.unwrap().json();
            assert_eq!(own["parts"].as_array().unwrap().len(), 1, "of its own partition alone: {own}");
        }
        let wrong = instances.0[0].client().get("/analytics/summary?scope=all").await.unwrap();
        assert_eq!(wrong.status, 400, "{}", wrong.text());
    });
}

fn a_header_that_nobody_has_checked_leaves_answers_whole(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let instances = Instances::start(&topic).await;
        for partition in 0..PARTITIONS {
            topic.send(partition, vec![record(Uuid::now_v7(), Created, 1)]).await;
        }
        instances.until(&[0, 1, 2], "all are whole", |summary| is_whole(summary, 3, 3)).await;
        let address = instances.0[0].address();
        // No HTTP client of ours would send it.
        let request = [
            &b"GET /analytics/summary HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: "[..],
            b"\xff\r\n\r\n",
        ]
        .concat();
        testbed::until("the answers to this caller and to the next one are whole", async || {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream.write_all(&request).unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).unwrap();
            let body = response.split_once("\r\n\r\n").unwrap().1;
            is_whole(&serde_json::from_str(body).unwrap_or_default(), 3, 3)
                && is_whole(&summary(&instances.0[0]).await, 3, 3)
        })
        .await;
    });
}

fn an_answer_without_an_instance_is_partial_until_it_is_back(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let mut instances = Instances::start(&topic).await;
        for partition in 0..PARTITIONS {
            topic.send(partition, (0..=partition).map(|_| record(Uuid::now_v7(), Created, 1)).collect()).await;
        }
        instances.until(&[0, 1, 2], "all are whole", |summary| is_whole(summary, 6, 6)).await;
        let is_partial = |summary: &Json| {
            summary["partial"] == true && summary["missingPartitions"] == json!([2]) && summary["created"] == 3
        };

        instances.0[2].process().kill().await;
        let partial = instances.until(&[0, 1], "they are partial", is_partial).await;
        assert_eq!(partitions(&partial), [0, 1].into());
        until_registrations(&instances.0[0], 3, Some("2")).await;
        let end = Instant::now() + TIMEOUT;
        while !instances.0[0].log().contains("another analytics-service does not answer") {
            assert!(Instant::now() < end, "{}", instances.0[0].log());
            smol::Timer::after(Duration::from_millis(50)).await;
        }

        let launch = instances.0[2].launch().clone();
        instances.0[2] = start(&topic, launch);
        instances.until(&[0, 1, 2], "it is back", |summary| is_whole(summary, 6, 6)).await;

        // One that hangs costs the deadline at most.
        instances.0[2].process().signal(Signal::STOP);
        instances.until(&[0, 1], "they are partial again", is_partial).await;
        instances.0[2].process().signal(Signal::CONT);
        instances.until(&[0, 1, 2], "it goes on", |summary| is_whole(summary, 6, 6)).await;
    });
}

fn every_member_of_a_group_answers_for_all_partitions_while_members_come_and_go(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let mut instances = Instances::start_group(&topic).await;
        for partition in 0..PARTITIONS {
            topic.send(partition, (0..=partition).map(|_| record(Uuid::now_v7(), Created, 1)).collect()).await;
        }
        instances.until(&[0, 1, 2], "all are whole", |summary| is_whole(summary, 6, 6)).await;
        instances.0[2].process().kill().await;
        topic.send(0, vec![record(Uuid::now_v7(), Created, 1)]).await;
        instances.until(&[0, 1], "its partition is another's", |summary| is_whole(summary, 7, 7)).await;
        let launch = instances.0[2].launch().clone();
        instances.0[2] = start(&topic, launch);
        topic.send(1, vec![record(Uuid::now_v7(), Created, 1)]).await;
        instances.until(&[0, 1, 2], "it is back", |summary| is_whole(summary, 8, 8)).await;
    });
}

fn a_stream_of_one_instance_has_the_changes_of_the_others(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let instances = Instances::start(&topic).await;
        let mut stream = TcpStream::connect(instances.0[0].address()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(b"GET /analytics/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        topic.send(1, vec![record(Uuid::now_v7(), Created, 1)]).await;
        let read = move || {
            let lines = BufReader::new(stream).lines().map(|line| line.expect("the change does not come"));
            let mut summaries = lines.filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
            summaries.any(|summary: Json| is_whole(&summary, 1, 1))
        };
        assert!(smol::unblock(read).await);
    });
}
