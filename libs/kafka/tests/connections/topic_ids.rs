//! Topic ids and leader epochs.

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
    broker::{any_broker, supporting},
    *,
};

/// The topic of a broker, and the error code of its fetch responses.
#[derive(Clone, Default)]
pub(crate) struct TopicState {
    pub(crate) topic_id: Uuid,
    pub(crate) leader_epoch: i32,
    pub(crate) error: Option<ResponseError>,
}

pub(crate) struct Leading {
    pub(crate) address: HostPort,
    pub(crate) topic: Arc<Mutex<TopicState>>,
    /// The topic's id, name and leader epoch of each fetch.
    pub(crate) fetches: Arc<Mutex<Vec<(Uuid, String, i32)>>>,
    _task: Task<()>,
}

/// A broker that leads the partition and supports current versions, up to this one of Fetch.
pub(crate) async fn leading(fetch: i16) -> Leading {
    let (topic, fetches, port) =
        (Arc::<Mutex<TopicState>>::default(), Arc::<Mutex<Vec<_>>>::default(), AtomicU16::new(0));
    let port = Arc::new(port);
    let (current, noted, own_port) = (topic.clone(), fetches.clone(), port.clone());
    let response = move |received: &ReceivedRequest| {
        let topic_state = current.lock().unwrap().clone();
        match received.key {
            ApiKey::ApiVersions => {
                received.response(&supporting(&[(ApiKey::Metadata, 0..=13), (ApiKey::Fetch, 4..=fetch)]))
            }
            ApiKey::Metadata => received.response(&metadata(&topic_state, own_port.load(SeqCst))),
            _ => {
                let request: FetchRequest = received.decode();
                let topic = &request.topics[0];
                let partition = &topic.partitions[0];
                let name = topic.topic.to_string();
                noted.lock().unwrap().push((topic.topic_id, name, partition.current_leader_epoch));
                let error = topic_state.error.map_or(0, |error| error.code());
                let partition = PartitionData::default().with_error_code(error);
                let found = FetchableTopicResponse::default()
                    .with_topic(topic.topic.clone())
                    .with_topic_id(topic.topic_id)
                    .with_partitions(vec![partition]);
                received.response(&FetchResponse::default().with_responses(vec![found]))
            }
        }
    };
    let (address, task) = any_broker(response).await;
    port.store(address.port, SeqCst);
    Leading { address, topic, fetches, _task: task }
}

pub(crate) fn metadata(state: &TopicState, port: u16) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(7))
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(port.into());
    let partition =
        MetadataResponsePartition::default().with_leader_id(BrokerId(7)).with_leader_epoch(state.leader_epoch);
    let topic = MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_static_str("topic"))))
        .with_topic_id(state.topic_id)
        .with_partitions(vec![partition]);
    MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![topic])
}

const FIRST_ID: Uuid = Uuid::from_u128(1);
const SECOND_ID: Uuid = Uuid::from_u128(2);

#[test]
fn a_fetch_has_the_topic_id_if_the_broker_has_one() {
    runtime::block_on(2, async {
        for (version, topic_id, expected) in [
            (18, FIRST_ID, (FIRST_ID, "", 5)),
            (13, FIRST_ID, (FIRST_ID, "", 5)),
            (12, FIRST_ID, (Uuid::nil(), "topic", 5)),
            // A current broker in a cluster without topic ids.
            (18, Uuid::nil(), (Uuid::nil(), "topic", 5)),
        ] {
            let leading = leading(version).await;
            *leading.topic.lock().unwrap() = TopicState { topic_id, leader_epoch: 5, error: None };
            let mut consumer = consumer(vec![leading.address.clone()]);
            assert_eq!((consumer.topic_id(), consumer.leader_epoch()), (None, None));
            fetch(&mut consumer).await.unwrap();
            let (id, name, epoch) = expected;
            assert_eq!(*leading.fetches.lock().unwrap(), [(id, name.to_owned(), epoch)]);
            let known = Some(topic_id).filter(|id| !id.is_nil());
            assert_eq!((consumer.topic_id(), consumer.leader_epoch()), (known, Some(5)));
        }
    });
}

#[test]
fn a_recreated_topic_is_an_error_until_the_caller_accepts_it() {
    runtime::block_on(2, async {
        let leading = leading(18).await;
        let set = |topic_id, error| *leading.topic.lock().unwrap() = TopicState { topic_id, leader_epoch: 0, error };
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
fn another_topic_than_the_expected_one_is_an_error_at_the_first_call() {
    runtime::block_on(2, async {
        let leading = leading(18).await;
        leading.topic.lock().unwrap().topic_id = SECOND_ID;
        let mut consumer = consumer(vec![leading.address.clone()]);
        consumer.expect_topic_id(Some(FIRST_ID));
        let changed = fetch(&mut consumer).await;
        assert!(matches!(changed, Err(Error::TopicChanged { .. })), "{changed:?}");
        assert!(leading.fetches.lock().unwrap().is_empty());
        consumer.expect_topic_id(Some(SECOND_ID));
        fetch(&mut consumer).await.unwrap();
        // A cluster without topic ids, as after a downgrade, does not contradict the expected id.
        *leading.topic.lock().unwrap() =
            TopicState { error: Some(ResponseError::UnknownTopicId), ..TopicState::default() };
        fetch(&mut consumer).await.unwrap_err();
        leading.topic.lock().unwrap().error = None;
        fetch(&mut consumer).await.unwrap();
        assert_eq!(consumer.topic_id(), Some(SECOND_ID));
        let last = leading.fetches.lock().unwrap().pop();
        assert_eq!(last, Some((Uuid::nil(), "topic".to_owned(), 0)));
    });
}

#[test]
fn errors_of_topic_id_and_leader_epoch_are_no_outage_and_refresh_the_metadata() {
    runtime::block_on(2, async {
        let leading = leading(18).await;
        let mut consumer = consumer(vec![leading.address.clone()]);
        let set = |leader_epoch, error| {
            *leading.topic.lock().unwrap() = TopicState { topic_id: FIRST_ID, leader_epoch, error };
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
