//! Batches whose checksum is wrong.

use std::sync::{Arc, Mutex};

use kafka::testing::{Codec, batch};
use kafka_protocol::{
    messages::{
        FetchResponse, TopicName,
        fetch_response::{FetchableTopicResponse, PartitionData},
    },
    protocol::StrBytes,
};

use super::*;

/// A batch at an offset, damaged or not.
fn at(offset: i64, damaged: bool) -> Vec<u8> {
    let record = Record { key: None, value: None, headers: Default::default(), timestamp: chrono::Utc::now() };
    let mut batch = batch(Codec::None, &[record]).to_vec();
    batch[..8].copy_from_slice(&offset.to_be_bytes());
    batch[40] ^= u8::from(damaged);
    batch
}

/// A leader of a partition with these batches, up to the offset 3; gives a client of it.
async fn leading(batches: Arc<Mutex<Vec<Vec<u8>>>>) -> (Consumer, [smol::Task<()>; 2]) {
    let answer = move |asked: &Asked| {
        let partition = PartitionData::default()
            .with_high_watermark(3)
            .with_last_stable_offset(3)
            .with_records(Some(batches.lock().unwrap().concat().into()));
        let topic = FetchableTopicResponse::default()
            .with_topic(TopicName(StrBytes::from_static_str("topic")))
            .with_partitions(vec![partition]);
        asked.answer(&FetchResponse::default().with_responses(vec![topic]))
    };
    let (leader, leading) = broker(answer).await;
    let (bootstrap, known) = broker(move |asked| led_by(asked.correlation, "127.0.0.1", leader.port)).await;
    (consumer(vec![bootstrap]), [leading, known])
}

#[test]
fn a_damaged_batch_is_passed_after_it_came_so_five_times() {
    runtime::block_on(2, async {
        let batches = Arc::new(Mutex::new(vec![at(0, false), at(1, true), at(2, false)]));
        let (mut consumer, _leading) = leading(batches.clone()).await;
        let first = fetch(&mut consumer).await.unwrap();
        assert_eq!((first.next, first.unreadable), (1, None), "what is before it is read");
        batches.lock().unwrap().remove(0);
        for _ in 0..4 {
            let damaged = consumer.fetch(1, 1 << 20, Duration::from_millis(10)).await;
            assert!(matches!(damaged, Err(Error::Malformed(Malformed::Checksum))), "{damaged:?}");
        }
        let passed = consumer.fetch(1, 1 << 20, Duration::from_millis(10)).await.unwrap();
        let unreadable = passed.unreadable.unwrap();
        assert_eq!((unreadable.first_offset, unreadable.last_offset, passed.next), (1, 1, 2));
        assert!(passed.records.is_empty() && unreadable.reason == Malformed::Checksum);
        batches.lock().unwrap().remove(0);
        assert_eq!(consumer.fetch(2, 1 << 20, Duration::from_millis(10)).await.unwrap().next, 3);
    });
}

#[test]
fn damage_on_the_way_costs_no_record() {
    runtime::block_on(2, async {
        let batches = Arc::new(Mutex::new(vec![at(0, true)]));
        let (mut consumer, _leading) = leading(batches.clone()).await;
        for damaged in [true, true, true, false, true, true, true, true, false] {
            *batches.lock().unwrap() = vec![at(0, damaged)];
            let fetched = fetch(&mut consumer).await;
            assert_eq!(fetched.is_err(), damaged);
            assert!(fetched.is_err() || fetched.unwrap().records.iter().count() == 1);
        }
    });
}
