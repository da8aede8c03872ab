//! Bootstrap brokers that are cut off from the others, or have just been started.

use std::sync::atomic::AtomicBool;

use kafka::{KnownTopic, partitions, partitions_of_known};
use kafka_protocol::error::ResponseError;
use smol::Task;
use uuid::Uuid;

use crate::{
    broker::{any_broker, supporting},
    topic_ids::{Leading, TopicState, leading, metadata},
    *,
};

/// A broker that acts as the leader, with this epoch.
async fn leader(topic_id: Uuid, leader_epoch: i32, error: Option<ResponseError>) -> Leading {
    let leading = leading(18).await;
    *leading.topic.lock().unwrap() = TopicState { topic_id, leader_epoch, error };
    leading
}

fn fetches(leading: &Leading) -> usize {
    leading.fetches.lock().unwrap().len()
}

#[test]
fn a_leader_that_is_cut_off_is_left_for_the_one_with_a_higher_epoch() {
    runtime::block_on(2, async {
        let id = Uuid::from_u128(1);
        let (cut_off, elected) = (leader(id, 5, None).await, leader(id, 6, None).await);
        let brokers = vec![cut_off.address.clone(), elected.address.clone()];
        let mut consumer = consumer(brokers.clone());
        for _ in 0..3 {
            fetch(&mut consumer).await.unwrap();
        }
        assert_eq!((fetches(&cut_off), fetches(&elected)), (3, 0), "nothing says that it is not the leader");
        let mut consumer = consumer.with_max_metadata_age(Duration::ZERO);
        let found = fetch(&mut consumer).await;
        assert!(matches!(found, Err(Error::FencedLeaderEpoch)), "its log may be another one: {found:?}");
        for _ in 0..3 {
            fetch(&mut consumer).await.unwrap();
        }
        assert_eq!((fetches(&cut_off), fetches(&elected)), (3, 3), "another bootstrap broker knew it");
        // Whichever is asked first: they take turns.
        let mut consumer = consumer.with_max_metadata_age(Duration::MAX);
        for _ in 0..4 {
            elected.topic.lock().unwrap().error = Some(ResponseError::RequestTimedOut);
            fetch(&mut consumer).await.unwrap_err();
            elected.topic.lock().unwrap().error = None;
            fetch(&mut consumer).await.unwrap();
        }
        assert_eq!((fetches(&cut_off), consumer.leader_epoch()), (3, Some(6)));
        // Nobody knows better: the metadata may be of a cluster that was restored from a backup.
        elected.topic.lock().unwrap().leader_epoch = 4;
        elected.topic.lock().unwrap().error = Some(ResponseError::FencedLeaderEpoch);
        fetch(&mut consumer).await.unwrap_err();
        elected.topic.lock().unwrap().error = None;
        fetch(&mut consumer).await.unwrap();
    });
}

/// As after a restart: the consumer knows the topic by what was stored.
#[test]
fn a_broker_that_knows_another_topic_is_believed_only_if_no_other_one_has_the_expected() {
    runtime::block_on(2, async {
        let (before, current) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (cut_off, up_to_date) = (leader(before, 5, None).await, leader(current, 0, None).await);
        let mut consumer = consumer(vec![cut_off.address.clone(), up_to_date.address.clone()]);
        consumer.expect_topic_id(Some(current));
        fetch(&mut consumer).await.unwrap();
        assert_eq!((fetches(&cut_off), fetches(&up_to_date)), (0, 1));
        consumer.expect_topic_id(Some(Uuid::from_u128(3)));
        for _ in 0..2 {
            let changed = fetch(&mut consumer).await;
            assert!(matches!(changed, Err(Error::TopicChanged { .. })), "{changed:?}");
        }
    });
}

#[test]
fn a_connection_is_used_on_while_no_bootstrap_broker_is_available() {
    runtime::block_on(2, async {
        let leader = leader(Uuid::from_u128(1), 5, None).await;
        let port = leader.address.port;
        let (bootstrap, serving) = any_broker(move |received| match received.key {
            ApiKey::ApiVersions => received.response(&supporting(&[(ApiKey::Metadata, 0..=13)])),
            _ => {
                let state = TopicState { topic_id: Uuid::from_u128(1), leader_epoch: 5, error: None };
                received.response(&metadata(&state, port))
            }
        })
        .await;
        let mut consumer = consumer(vec![bootstrap]).with_max_metadata_age(Duration::ZERO);
        fetch(&mut consumer).await.unwrap();
        serving.cancel().await;
        fetch(&mut consumer).await.unwrap();
        assert_eq!(fetches(&leader), 2);
    });
}

/// Without topic ids, leader epochs of two topics with one name would be compared.
#[test]
fn after_a_failed_call_another_bootstrap_broker_is_asked_first() {
    runtime::block_on(2, async {
        let cut_off = leader(Uuid::nil(), 6, Some(ResponseError::RequestTimedOut)).await;
        let elected = leader(Uuid::nil(), 5, None).await;
        let mut consumer = consumer(vec![cut_off.address.clone(), elected.address.clone()]);
        fetch(&mut consumer).await.unwrap_err();
        fetch(&mut consumer).await.unwrap();
        assert_eq!((fetches(&cut_off), fetches(&elected)), (1, 1));
    });
}

/// A bootstrap broker that answers metadata with this error of the topic, or of its partition.
async fn knowing_nothing(of_topic: Option<ResponseError>, of_partition: Option<ResponseError>) -> (HostPort, Task<()>) {
    let code = |error: Option<ResponseError>| error.map_or(0, |error| error.code());
    any_broker(move |received| match received.key {
        ApiKey::ApiVersions => received.response(&supporting(&[(ApiKey::Metadata, 0..=13)])),
        _ => {
            let mut response = metadata(&TopicState::default(), 1);
            response.topics[0].error_code = code(of_topic);
            response.topics[0].partitions[0].error_code = code(of_partition);
            received.response(&response)
        }
    })
    .await
}

#[test]
fn a_topic_is_missing_only_if_no_other_bootstrap_broker_has_it() {
    runtime::block_on(2, async {
        let (first, _first) = knowing_nothing(Some(ResponseError::UnknownTopicOrPartition), None).await;
        let (second, _second) = knowing_nothing(Some(ResponseError::UnknownTopicOrPartition), None).await;
        let leader = leader(Uuid::from_u128(1), 5, None).await;
        assert_eq!(partitions(&settings(vec![first.clone(), leader.address.clone()]), "topic").await.unwrap(), 1);
        fetch(&mut consumer(vec![first.clone(), leader.address.clone()])).await.unwrap();
        for brokers in [vec![first.clone()], vec![first.clone(), second], vec![first, loopback(testbed::ports::free())]]
        {
            let missing = partitions(&settings(brokers), "topic").await;
            assert!(matches!(missing, Err(Error::UnknownTopic)), "{missing:?}");
        }
    });
}

#[test]
fn a_partition_without_a_leader_is_no_outage_of_the_bootstrap_brokers() {
    runtime::block_on(2, async {
        let leaderless = || knowing_nothing(None, Some(ResponseError::LeaderNotAvailable));
        let ((first, _first), (second, _second)) = (leaderless().await, leaderless().await);
        let error = fetch(&mut consumer(vec![first, second])).await.unwrap_err();
        assert_eq!(error.to_string(), "the broker is unavailable: LeaderNotAvailable");
    });
}

/// A bootstrap broker that knows the topic with this id and this number of partitions, while it is available.
async fn knowing(topic_id: u128, partitions: usize, is_available: Arc<AtomicBool>) -> (HostPort, Task<()>) {
    any_broker(move |received| match received.key {
        ApiKey::ApiVersions => received.response(&supporting(&[(ApiKey::Metadata, 0..=13)])),
        _ => {
            let state = TopicState { topic_id: Uuid::from_u128(topic_id), leader_epoch: 5, error: None };
            let mut response = metadata(&state, 1);
            let partition = response.topics[0].partitions[0].clone();
            response.topics[0].partitions = vec![partition; partitions];
            if !is_available.load(SeqCst) {
                response.topics[0].error_code = ResponseError::LeaderNotAvailable.code();
            }
            received.response(&response)
        }
    })
    .await
}

#[test]
fn a_producer_remembers_no_topic_of_metadata_that_it_does_not_use() {
    runtime::block_on(2, async {
        let is_available = Arc::new(AtomicBool::new(true));
        let (current, _current) = knowing(2, 2, is_available.clone()).await;
        // The topic was recreated while it was cut off.
        let (cut_off, _cut_off) = knowing(1, 1, Arc::new(AtomicBool::new(true))).await;
        let mut producer =
            Producer::new(settings(vec![current, cut_off]), "topic").with_max_metadata_age(Duration::ZERO);
        assert_eq!(producer.partitions().await.unwrap(), 2);
        is_available.store(false, SeqCst);
        for _ in 0..2 {
            assert_eq!(producer.partitions().await.unwrap(), 2, "what contradicts it is not used");
        }
        is_available.store(true, SeqCst);
        for _ in 0..4 {
            assert_eq!(producer.partitions().await.unwrap(), 2, "nor is it believed later");
        }
    });
}

/// The number of partitions of a topic that had three, whichever of two brokers is asked first; none if it is not known.
async fn counted(brokers: &[&HostPort], id: Option<u128>) -> [Option<i32>; 2] {
    let settings = settings(brokers.iter().map(|broker| (*broker).clone()).collect());
    let known = KnownTopic { id: id.map(Uuid::from_u128), partitions: 3 };
    let mut counts = [None; 2];
    for count in &mut counts {
        *count = partitions_of_known(&settings, "topic", known).await.ok();
    }
    counts
}

#[test]
fn fewer_partitions_than_known_are_those_of_another_topic_or_of_all_bootstrap_brokers() {
    runtime::block_on(2, async {
        let knowing = |id, partitions| knowing(id, partitions, Arc::new(AtomicBool::new(true)));
        let unavailable = loopback(testbed::ports::free());
        let ((current, _current), (outdated, _outdated)) = (knowing(1, 3).await, knowing(1, 1).await);
        let (recreated, _recreated) = knowing(2, 1).await;
        assert_eq!(counted(&[&outdated, &current], Some(1)).await, [Some(3); 2]);
        assert_eq!(counted(&[&outdated, &unavailable], Some(1)).await, [Some(3); 2], "it is the same topic");
        assert_eq!(counted(&[&recreated, &current], Some(1)).await, [Some(3); 2]);
        assert_eq!(counted(&[&recreated, &unavailable], Some(1)).await, [Some(1); 2]);
        let ((current, _current), (outdated, _outdated)) = (knowing(0, 3).await, knowing(0, 1).await);
        let (other, _other) = knowing(0, 1).await;
        assert_eq!(counted(&[&outdated, &current], None).await, [Some(3); 2]);
        assert_eq!(counted(&[&outdated, &unavailable], None).await, [None; 2], "the other one may know better");
        assert_eq!(counted(&[&outdated, &other], None).await, [Some(1); 2]);
    });
}
