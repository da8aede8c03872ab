//! Which topic is read.

use std::sync::{Arc, Mutex};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        BrokerId, FetchRequest, FetchResponse, MetadataResponse, TopicName,
        fetch_response::{FetchableTopicResponse, PartitionData},
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
    },
    protocol::StrBytes,
};
use smol::Task;
use uuid::Uuid;

use super::{
    broker::{any_broker, speaking},
    *,
};

/// What a broker knows of the topic, and how it answers fetches.
#[derive(Clone, Default)]
struct Known {
    topic_id: Uuid,
    leader_epoch: i32,
    error: Option<ResponseError>,
}

struct Leading {
    address: HostPort,
    known: Arc<Mutex<Known>>,
    /// The topic's id, name and leader epoch of each fetch.
    fetches: Arc<Mutex<Vec<(Uuid, String, i32)>>>,
    _task: Task<()>,
}

/// A broker that leads the partition and speaks the versions of today, up to this one of Fetch.
async fn leading(fetch: i16) -> Leading {
    let (known, fetches, port) = (Arc::<Mutex<Known>>::default(), Arc::<Mutex<Vec<_>>>::default(), AtomicU16::new(0));
    let port = Arc::new(port);
    let (knows, noted, own_port) = (known.clone(), fetches.clone(), port.clone());
    let answer = move |asked: &Asked| {
        let known = knows.lock().unwrap().clone();
        match asked.key {
            ApiKey::ApiVersions => asked.answer(&speaking(&[(ApiKey::Metadata, 0..=13), (ApiKey::Fetch, 4..=fetch)])),
            ApiKey::Metadata => asked.answer(&metadata(&known, own_port.load(SeqCst))),
            _ => {
                let request: FetchRequest = asked.request();
                let topic = &request.topics[0];
                let partition = &topic.partitions[0];
                let name = topic.topic.to_string();
                noted.lock().unwrap().push((topic.topic_id, name, partition.current_leader_epoch));
                let error = known.error.map_or(0, |error| error.code());
                let partition = PartitionData::default().with_error_code(error);
                let found = FetchableTopicResponse::default()
                    .with_topic(topic.topic.clone())
                    .with_topic_id(topic.topic_id)
                    .with_partitions(vec![partition]);
                asked.answer(&FetchResponse::default().with_responses(vec![found]))
            }
        }
    };
    let (address, task) = any_broker(answer).await;
    port.store(address.port, SeqCst);
    Leading { address, known, fetches, _task: task }
}

fn metadata(known: &Known, port: u16) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(7))
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(port.into());
    let partition =
        MetadataResponsePartition::default().with_leader_id(BrokerId(7)).with_leader_epoch(known.leader_epoch);
    let topic = MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_static_str("topic"))))
        .with_topic_id(known.topic_id)
        .with_partitions(vec![partition]);
    MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![topic])
}

const FIRST_ID: Uuid = Uuid::from_u128(1);
const SECOND_ID: Uuid = Uuid::from_u128(2);

#[test]
fn a_fetch_names_the_topic_by_its_id_where_the_broker_knows_it() {
    runtime::block_on(2, async {
        for (version, topic_id, asked) in [
            (18, FIRST_ID, (FIRST_ID, "", 5)),
            (13, FIRST_ID, (FIRST_ID, "", 5)),
            (12, FIRST_ID, (Uuid::nil(), "topic", 5)),
            // A broker of today whose cluster has not learned of topic ids yet.
            (18, Uuid::nil(), (Uuid::nil(), "topic", 5)),
        ] {
            let leading = leading(version).await;
            *leading.known.lock().unwrap() = Known { topic_id, leader_epoch: 5, error: None };
            let mut consumer = consumer(vec![leading.address.clone()]);
            assert_eq!((consumer.topic_id(), consumer.leader_epoch()), (None, None));
            fetch(&mut consumer).await.unwrap();
            let (id, name, epoch) = asked;
            assert_eq!(*leading.fetches.lock().unwrap(), [(id, name.to_owned(), epoch)]);
            let known = Some(topic_id).filter(|id| !id.is_nil());
            assert_eq!((consumer.topic_id(), consumer.leader_epoch()), (known, Some(5)));
        }
    });
}

#[test]
fn a_topic_that_was_made_again_is_told_until_the_caller_takes_it() {
    runtime::block_on(2, async {
        let leading = leading(18).await;
        let set = |topic_id, error| *leading.known.lock().unwrap() = Known { topic_id, leader_epoch: 0, error };
        set(FIRST_ID, None);
        let mut consumer = consumer(vec![leading.address.clone()]);
        fetch(&mut consumer).await.unwrap();
        set(SECOND_ID, Some(ResponseError::UnknownTopicId));
        let gone = fetch(&mut consumer).await;
        assert!(matches!(gone, Err(Error::UnknownTopicId)), "{gone:?}");
        set(SECOND_ID, None);
        for _ in 0..2 {
            let changed = fetch(&mut consumer).await;
            let is_it = matches!(changed, Err(Error::TopicChanged { expected: FIRST_ID, found: SECOND_ID }));
            assert!(is_it, "{changed:?}");
            let changed = consumer.offsets().await;
            assert!(matches!(changed, Err(Error::TopicChanged { .. })), "{changed:?}");
        }
        assert_eq!(consumer.topic_id(), Some(FIRST_ID));
        consumer.expect_topic_id(None);
        fetch(&mut consumer).await.unwrap();
        assert_eq!(consumer.topic_id(), Some(SECOND_ID));
    });
}

#[test]
fn a_topic_that_is_expected_is_told_from_another_at_the_first_call() {
    runtime::block_on(2, async {
        let leading = leading(18).await;
        leading.known.lock().unwrap().topic_id = SECOND_ID;
        let mut consumer = consumer(vec![leading.address.clone()]);
        consumer.expect_topic_id(Some(FIRST_ID));
        let changed = fetch(&mut consumer).await;
        assert!(matches!(changed, Err(Error::TopicChanged { .. })), "{changed:?}");
        assert!(leading.fetches.lock().unwrap().is_empty());
        consumer.expect_topic_id(Some(SECOND_ID));
        fetch(&mut consumer).await.unwrap();
        // A cluster that forgets its ids, as after a step back to an older version, tells nothing of the topic.
        *leading.known.lock().unwrap() = Known { error: Some(ResponseError::UnknownTopicId), ..Known::default() };
        fetch(&mut consumer).await.unwrap_err();
        leading.known.lock().unwrap().error = None;
        fetch(&mut consumer).await.unwrap();
        assert_eq!(consumer.topic_id(), Some(SECOND_ID));
        let last = leading.fetches.lock().unwrap().pop();
        assert_eq!(last, Some((Uuid::nil(), "topic".to_owned(), 0)));
    });
}

#[test]
fn what_tells_of_another_topic_or_leader_is_told_from_an_outage_and_asked_anew() {
    runtime::block_on(2, async {
        let leading = leading(18).await;
        let mut consumer = consumer(vec![leading.address.clone()]);
        let set = |leader_epoch, error| {
            *leading.known.lock().unwrap() = Known { topic_id: FIRST_ID, leader_epoch, error };
        };
        for (epoch, (error, expected)) in (0..).zip([
            (ResponseError::InconsistentTopicId, "inconsistent_topic_id"),
            (ResponseError::UnknownTopicId, "unknown_topic_id"),
            (ResponseError::FencedLeaderEpoch, "fenced_leader_epoch"),
        ]) {
            set(epoch, Some(error));
            assert_eq!(fetch(&mut consumer).await.unwrap_err().outcome(), expected);
            set(epoch + 1, None);
            fetch(&mut consumer).await.unwrap();
            assert_eq!(consumer.leader_epoch(), Some(epoch + 1));
        }
    });
}
