//! Instances that are members of the consumer group.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use codec::event::EventKind::Created;
use kafka::testing::{committed_offsets, delete_records};
use serde_json::Value as Json;
use testbed::broker;
use uuid::Uuid;

use crate::harness::{Harness, PARTITIONS, Running, foreign, with_topic};

// Nisshi's coordinator does not wait for the members of the previous generation, so that two may count a partition for a moment.
testbed::on_each_kafka!(
    partitions_move_between_members_and_every_event_is_counted_once,
    a_member_that_dies_is_replaced_and_its_successor_continues,
    members_commit_their_progress_to_the_group,
    an_instance_whose_state_cannot_be_opened_is_no_member,
    a_standby_continues_for_a_dead_owner_without_the_records_that_it_has,
    dead_letters_of_a_partition_with_a_standby_are_stored_once,
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

/// The next offset of each copy that a member keeps.
async fn copies(member: &Running) -> BTreeMap<i32, i64> {
    let summary: Json = member.own_summary().await;
    let copies = summary["standbys"].as_array().into_iter().flatten();
    let next = |copy: &Json| {
        let partition = i32::try_from(copy["partition"].as_i64().unwrap()).unwrap();
        (partition, copy["appliedOffset"].as_i64().unwrap() + 1)
    };
    copies.map(next).collect()
}

/// Waits until the copies of the members have so many records together, and none of them more than its owner has committed.
async fn until_copied(group: &Group, members: &[&Running], records: i64) {
    let Harness { kafka, topic, .. } = &group.topic;
    let read = async || {
        let mut all = BTreeMap::new();
        for member in members {
            all.extend(copies(member).await);
        }
        // Read after the copies.
        let committed = committed_offsets(kafka, &group.name, topic, PARTITIONS).await.unwrap();
        for (partition, next) in &all {
            let limit = committed.get(partition).copied().unwrap_or_default();
            assert!(*next <= limit, "the copy of partition {partition} is at {next}, and its owner committed {limit}");
        }
        all
    };
    until(read, |all| all.len() == 3 && all.values().sum::<i64>() == records).await;
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

const WITH_STANDBYS: [(&str, &str); 1] = [("STANDBYS", "1")];

fn a_standby_continues_for_a_dead_owner_without_the_records_that_it_has(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let mut group = Group::new(topic);
        let first = group.start_with("first", &WITH_STANDBYS).await;
        let second = group.start_with("second", &WITH_STANDBYS).await;
        // Before there is anything: what one has counted as an owner it has at once.
        until_counted(&[&first, &second], &[1, 2], 0).await;
        group.register(60).await;
        until_counted(&[&first, &second], &[1, 2], 60).await;
        until_copied(&group, &[&first, &second], 60).await;
        // Each has the whole topic now, and answers for its share.
        until_counted(&[&first, &second], &[1, 2], 60).await;
        assert_eq!(first.summary().await["created"], 60);

        // Whoever began at the beginning would count nothing.
        let Harness { kafka, topic, .. } = &group.topic;
        let ends = committed_offsets(kafka, &group.name, topic, PARTITIONS).await.unwrap();
        assert_eq!(ends.values().sum::<i64>(), 60);
        delete_records(kafka, topic, &ends).await.unwrap();
        second.kill().await;
        until_counted(&[&first], &[3], 60).await;
        assert_eq!(first.summary().await["activePatients"], 60);
        group.register(30).await;
        until_counted(&[&first], &[3], 90).await;
        assert!(copies(&first).await.is_empty(), "nobody is left to keep a copy for");
        first.stop().await;
    });
}

fn dead_letters_of_a_partition_with_a_standby_are_stored_once(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let mut group = Group::new(topic);
        let first = group.start_with("first", &WITH_STANDBYS).await;
        let second = group.start_with("second", &WITH_STANDBYS).await;
        until_counted(&[&first, &second], &[1, 2], 0).await;
        for partition in 0..PARTITIONS {
            group.topic.send(partition, vec![foreign("no event")]).await;
        }
        group.register(30).await;
        until_copied(&group, &[&first, &second], 33).await;
        let stored = async |members: &[&Running]| {
            let mut stored = Vec::new();
            for member in members {
                let letters = member.get("/analytics/dead-letters").await.json();
                stored.extend(letters.as_array().unwrap().iter().map(|letter| letter["partition"].as_i64().unwrap()));
            }
            stored.sort_unstable();
            stored
        };
        assert_eq!(stored(&[&first, &second]).await, [0, 1, 2]);
        let of_second = stored(&[&second]).await;
        second.kill().await;
        // What comes now is the new owner's.
        for partition in 0..PARTITIONS {
            group.topic.send(partition, vec![foreign("no event")]).await;
        }
        let expected = [0, 1, 2].into_iter().flat_map(|n| if of_second.contains(&n) { vec![n] } else { vec![n, n] });
        let expected: Vec<_> = expected.collect();
        until(async || stored(&[&first]).await, |stored| *stored == expected).await;
        first.stop().await;
    });
}
