//! Instances that are members of the consumer group.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use codec::event::EventKind::Created;
use kafka::testing::committed_offsets;
use serde_json::Value as Json;
use testbed::broker;
use uuid::Uuid;

use crate::harness::{Harness, PARTITIONS, Running, with_topic};

// Nisshi's coordinator does not wait for the members of before, so that two may count a partition for a moment.
testbed::on_each_kafka!(
    partitions_move_between_members_and_every_event_is_counted_once,
    a_member_that_dies_is_replaced_and_its_successor_continues,
    members_commit_their_progress_to_the_group,
    an_instance_whose_state_cannot_be_opened_is_no_member,
);

/// How long a test waits for what is going to happen: a session timeout, and a busy machine.
const TIMEOUT: Duration = Duration::from_secs(90);

/// A group of instances with states of their own.
struct Group {
    topic: Harness,
    name: String,
}

impl Group {
    fn new(topic: Harness) -> Self {
        Self { topic, name: format!("group-{:016x}", fastrand::u64(..)) }
    }

    /// Starts the instance with this state.
    async fn start(&self, state: &str) -> Running {
        self.start_with(state, &[]).await
    }

    async fn start_with(&self, state: &str, settings: &[(&str, &str)]) -> Running {
        let file = self.topic.state.with_extension(state);
        let own = [
            ("PARTITIONS", "group"),
            ("KAFKA_CONSUMER_GROUP", &self.name),
            ("KAFKA_SESSION_TIMEOUT", "6s"),
            ("STATE_FILE", file.to_str().unwrap()),
        ];
        self.topic.start(&[&own[..], settings].concat()).await
    }

    async fn register(&mut self, patients: i64) {
        let events: Vec<_> = (0..patients).map(|_| (Uuid::now_v7(), Created, 1)).collect();
        self.topic.publish(&events).await;
    }
}

/// The next offset of each partition, how many partitions instances have in ascending order, and what they have counted.
async fn shares(members: &[&Running]) -> (BTreeMap<i64, i64>, Vec<usize>, i64) {
    let (mut next, mut sizes, mut created) = (BTreeMap::new(), Vec::new(), 0);
    for member in members {
        let summary: Json = member.own_summary().await;
        let partitions = summary["partitions"].as_array().unwrap();
        for partition in partitions {
            let offset = partition["appliedOffset"].as_i64().unwrap() + 1;
            let before = next.insert(partition["partition"].as_i64().unwrap(), offset);
            // Until all have heard of the next assignment, two may answer for a partition.
            if before.is_some() {
                return (BTreeMap::new(), Vec::new(), -1);
            }
        }
        sizes.push(partitions.len());
        created += summary["created"].as_i64().unwrap();
    }
    sizes.sort_unstable();
    (next, sizes, created)
}

/// Waits until the members have so many partitions each, and have counted so many patients together, all of the topic's records.
async fn until_counted(members: &[&Running], sizes: &[usize], patients: i64) {
    until(
        async || shares(members).await,
        |(next, found, created)| found == sizes && *created == patients && next.values().sum::<i64>() == patients,
    )
    .await;
}

/// Waits until what is read is as expected; panics with it after [`TIMEOUT`].
async fn until<T: Debug>(mut read: impl AsyncFnMut() -> T, is_expected: impl Fn(&T) -> bool) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let found = read().await;
        if is_expected(&found) {
            return;
        }
        assert!(Instant::now() < end, "it is still {found:?}");
        smol::Timer::after(Duration::from_millis(20)).await;
    }
}

fn partitions_move_between_members_and_every_event_is_counted_once(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let mut group = Group::new(topic);
        group.register(60).await;
        let first = group.start("first").await;
        until_counted(&[&first], &[3], 60).await;
        let second = group.start("second").await;
        until_counted(&[&first, &second], &[1, 2], 60).await;
        group.register(60).await;
        let third = group.start("third").await;
        until_counted(&[&first, &second, &third], &[1, 1, 1], 120).await;
        // They leave: the others have stale copies of what they had before, and read on from there.
        second.stop().await;
        group.register(60).await;
        until_counted(&[&first, &third], &[1, 2], 180).await;
        third.stop().await;
        until_counted(&[&first], &[3], 180).await;
        let second = group.start("second").await;
        group.register(60).await;
        until_counted(&[&first, &second], &[1, 2], 240).await;
        first.stop().await;
        until_counted(&[&second], &[3], 240).await;
        second.stop().await;
    });
}

fn a_member_that_dies_is_replaced_and_its_successor_continues(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let mut group = Group::new(topic);
        group.register(60).await;
        let first = group.start("first").await;
        let second = group.start_with("second", &[("KAFKA_GROUP_INSTANCE_ID", "second")]).await;
        until_counted(&[&first, &second], &[1, 2], 60).await;
        second.kill().await;
        group.register(60).await;
        until_counted(&[&first], &[3], 120).await;
        // Its address is another one, and its state is behind.
        let as_before = [("KAFKA_GROUP_INSTANCE_ID", "second"), ("KAFKA_SESSION_TIMEOUT", "60s")];
        let second = group.start_with("second", &as_before).await;
        until_counted(&[&first, &second], &[1, 2], 120).await;
        // Within the session timeout it gets back what it had.
        let before = second.own_summary().await["partitions"].clone();
        second.stop().await;
        let second = group.start_with("second", &as_before).await;
        until_counted(&[&first, &second], &[1, 2], 120).await;
        assert_eq!(second.own_summary().await["partitions"], before);
        // The others ask it at its address of now.
        until(async || first.summary().await, |answer| answer["partial"] != true && answer["created"] == 120).await;
        first.stop().await;
        second.stop().await;
    });
}

fn members_commit_their_progress_to_the_group(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let mut group = Group::new(topic);
        let (first, second) = (group.start("first").await, group.start("second").await);
        group.register(60).await;
        until_counted(&[&first, &second], &[1, 2], 60).await;
        let Harness { kafka, topic, .. } = &group.topic;
        until(
            async || committed_offsets(kafka, &group.name, topic, PARTITIONS).await,
            |committed| committed.as_ref().is_ok_and(|next| next.len() == 3 && next.values().sum::<i64>() == 60),
        )
        .await;
        first.stop().await;
        second.stop().await;
    });
}

fn an_instance_whose_state_cannot_be_opened_is_no_member(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let mut group = Group::new(topic);
        group.register(60).await;
        let first = group.start("first").await;
        until_counted(&[&first], &[3], 60).await;
        // A file in place of the directory.
        let directory = group.topic.scratch().path().join("state");
        std::fs::write(&directory, "").unwrap();
        let file = directory.join("analytics.sqlite");
        let second = group.start_with("second", &[("STATE_FILE", file.to_str().unwrap())]).await;
        until(async || second.get("/actuator/health/readiness").await.status, |status| *status == 503).await;
        group.register(60).await;
        until_counted(&[&first], &[3], 120).await;
        std::fs::remove_file(&directory).unwrap();
        std::fs::create_dir(&directory).unwrap();
        until_counted(&[&first, &second], &[1, 2], 120).await;
        first.stop().await;
        second.stop().await;
    });
}
