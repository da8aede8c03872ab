//! Batches whose checksum is wrong, and large ones.

use std::sync::{Arc, Mutex};

use kafka::{
    FetchMemory, Settings,
    testing::{Codec, at_offset, batch, transaction_marker},
};
use kafka_protocol::{
    messages::{
        FetchResponse, TopicName,
        fetch_response::{FetchableTopicResponse, PartitionData},
    },
    protocol::StrBytes,
};

use super::*;

/// Enough for a large batch on a busy machine.
const LARGE: Duration = Duration::from_secs(20);

/// A batch with one record at an offset, damaged or not.
fn batch_at(offset: i64, damaged: bool) -> Vec<u8> {
    sized_batch_at(offset, damaged, 0)
}

fn sized_batch_at(offset: i64, damaged: bool, bytes: usize) -> Vec<u8> {
    let value = Some(vec![7; bytes]);
    let record = Record { key: None, value, headers: Default::default(), timestamp: chrono::Utc::now() };
    let mut batch = batch(Codec::None, &[record]).to_vec();
    batch[..8].copy_from_slice(&offset.to_be_bytes());
    batch[40] ^= u8::from(damaged);
    batch
}

/// A consumer of a partition with these batches and high watermark 3.
async fn leading(batches: Arc<Mutex<Vec<Vec<u8>>>>) -> (Consumer, [smol::Task<()>; 2]) {
    let (bootstrap, tasks) = bootstrap_of(batches).await;
    (consumer_within(bootstrap, LARGE), tasks)
}

/// A consumer whose calls have this deadline.
fn consumer_within(bootstrap: HostPort, deadline: Duration) -> Consumer {
    Consumer::new(Settings { deadline, ..settings(vec![bootstrap]) }, "topic", 0)
}

/// The bootstrap broker of that partition.
async fn bootstrap_of(batches: Arc<Mutex<Vec<Vec<u8>>>>) -> (HostPort, [smol::Task<()>; 2]) {
    let response = move |received: &ReceivedRequest| {
        let partition = PartitionData::default()
            .with_high_watermark(3)
            .with_last_stable_offset(3)
            .with_records(Some(batches.lock().unwrap().concat().into()));
        let topic = FetchableTopicResponse::default()
            .with_topic(TopicName(StrBytes::from_static_str("topic")))
            .with_partitions(vec![partition]);
        received.response(&FetchResponse::default().with_responses(vec![topic]))
    };
    let (leader, leading) = broker(response).await;
    let (bootstrap, bootstrapping) =
        broker(move |received| metadata_response(received.correlation, "127.0.0.1", leader.port)).await;
    (bootstrap, [leading, bootstrapping])
}

#[test]
fn a_batch_with_a_wrong_checksum_is_skipped_after_five_fetches() {
    runtime::block_on(2, async {
        let batches = Arc::new(Mutex::new(vec![batch_at(0, false), batch_at(1, true), batch_at(2, false)]));
        let (mut consumer, _leading) = leading(batches.clone()).await;
        let first = fetch(&mut consumer).await.unwrap();
        assert_eq!((first.next, first.unreadable), (1, None), "the batch before it is read");
        batches.lock().unwrap().remove(0);
        for _ in 0..4 {
            let damaged = consumer.fetch(1, 1 << 20, Duration::from_millis(10)).await;
            assert!(matches!(damaged, Err(Error::Malformed(Malformed::Checksum))), "{damaged:?}");
        }
        let skipped = consumer.fetch(1, 1 << 20, Duration::from_millis(10)).await.unwrap();
        let unreadable = skipped.unreadable.unwrap();
        assert_eq!((unreadable.first_offset, unreadable.last_offset, skipped.next), (1, 1, 2));
        assert!(skipped.records.is_empty() && unreadable.reason == Malformed::Checksum);
        batches.lock().unwrap().remove(0);
        assert_eq!(consumer.fetch(2, 1 << 20, Duration::from_millis(10)).await.unwrap().next, 3);
    });
}

/// Where it ends is looked for with a second fetch, which needs the permit of a large batch too.
#[test]
fn a_large_batch_with_a_wrong_checksum_is_skipped_after_five_fetches() {
    runtime::block_on(2, async {
        let batches = Arc::new(Mutex::new(vec![sized_batch_at(0, true, 2 << 20), batch_at(1, false)]));
        let (mut consumer, _leading) = leading(batches).await;
        let mut fetch = async || runtime::timeout(LARGE, fetch(&mut consumer)).await.unwrap();
        for _ in 0..4 {
            let damaged = fetch().await;
            assert!(matches!(damaged, Err(Error::Malformed(Malformed::Checksum))), "{damaged:?}");
        }
        let skipped = fetch().await.unwrap();
        assert_eq!((skipped.next, skipped.unreadable.unwrap().reason), (1, Malformed::Checksum));
    });
}

/// In the buffer of the connection, and larger than that.
#[test]
fn waiting_for_the_memory_of_another_fetch_does_not_count_towards_the_deadline() {
    let deadline = Duration::from_secs(5);
    runtime::block_on(2, async {
        for bytes in [0, 12 << 20] {
            let (bootstrap, _leading) = bootstrap_of(Arc::new(Mutex::new(vec![sized_batch_at(0, false, bytes)]))).await;
            let memory = FetchMemory::default();
            let mut consumers = [(); 2].map(|()| consumer_within(bootstrap.clone(), deadline).sharing(memory.clone()));
            let [one, other] = &mut consumers;
            let held = fetch(one).await.unwrap();
            let mut waiting = Box::pin(fetch(other));
            let waited = runtime::timeout(deadline + deadline / 4, &mut waiting).await;
            assert!(waited.is_err(), "there are two with records: {waited:?}");
            let permit = held.records.into_permit();
            assert!(
                smol::future::poll_once(&mut waiting).await.is_none(),
                "what was made of them has no other bound yet"
            );
            drop(permit);
            assert_eq!(waiting.await.unwrap().records.iter().count(), 1);
        }
    });
}

#[test]
fn damage_on_the_network_loses_no_record() {
    runtime::block_on(2, async {
        let batches = Arc::new(Mutex::new(vec![batch_at(0, true)]));
        let (mut consumer, _leading) = leading(batches.clone()).await;
        for damaged in [true, true, true, false, true, true, true, true, false] {
            *batches.lock().unwrap() = vec![batch_at(0, damaged)];
            let fetched = fetch(&mut consumer).await;
            assert_eq!(fetched.is_err(), damaged);
            assert!(fetched.is_err() || fetched.unwrap().records.iter().count() == 1);
        }
    });
}

/// After each error analytics compares the record before its position, which may be none, as that of a transaction marker.
#[test]
fn a_batch_with_a_wrong_checksum_is_skipped_although_the_offset_before_it_is_looked_at_in_between() {
    runtime::block_on(2, async {
        let marker = at_offset(&transaction_marker(1, true, chrono::Utc::now()), 0).to_vec();
        let batches = Arc::new(Mutex::new(vec![marker, batch_at(1, true), batch_at(2, false)]));
        let (mut consumer, _leading) = leading(batches.clone()).await;
        let wait = Duration::from_millis(10);
        for _ in 0..4 {
            assert_eq!(consumer.timestamp_at(0, wait).await.unwrap(), None);
            let damaged = consumer.fetch(1, 1 << 20, wait).await;
            assert!(matches!(damaged, Err(Error::Malformed(Malformed::Checksum))), "{damaged:?}");
        }
        assert_eq!(consumer.timestamp_at(0, wait).await.unwrap(), None);
        let skipped = consumer.fetch(1, 1 << 20, wait).await.unwrap();
        assert_eq!((skipped.next, skipped.unreadable.is_some()), (2, true));
        let record = batch_at(5, false);
        let timestamp = i64::from_be_bytes(record[27..35].try_into().unwrap());
        *batches.lock().unwrap() = vec![record];
        assert_eq!(consumer.timestamp_at(5, wait).await.unwrap(), Some(timestamp));
        assert_eq!(consumer.timestamp_at(4, wait).await.unwrap(), None, "the first one after it is another one");
    });
}
