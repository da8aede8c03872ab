//! Ends of leader epochs, and leaders that are older than what was read.

use std::sync::{Arc, Mutex};

use kafka_protocol::messages::{
    OffsetForLeaderEpochResponse,
    offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
};
use smol::Task;
use uuid::Uuid;

use super::{
    broker::{any_broker, supporting},
    topic_ids::{TopicState, metadata},
    *,
};

/// A broker that acts as the leader, with this epoch, and answers with these ends of epochs.
async fn leader(leader_epoch: i32, end: Arc<Mutex<(i32, i64)>>) -> (HostPort, Task<()>) {
    let port = Arc::new(AtomicU16::new(0));
    let own_port = port.clone();
    let (address, task) = any_broker(move |received| match received.key {
        ApiKey::ApiVersions => {
            received.response(&supporting(&[(ApiKey::Metadata, 0..=13), (ApiKey::OffsetForLeaderEpoch, 3..=4)]))
        }
        ApiKey::Metadata => {
            let state = TopicState { topic_id: Uuid::from_u128(1), leader_epoch, error: None };
            received.response(&metadata(&state, own_port.load(SeqCst)))
        }
        _ => {
            let (epoch, end) = *end.lock().unwrap();
            let partition = EpochEndOffset::default().with_leader_epoch(epoch).with_end_offset(end);
            let topic = OffsetForLeaderTopicResult::default().with_partitions(vec![partition]);
            received.response(&OffsetForLeaderEpochResponse::default().with_topics(vec![topic]))
        }
    })
    .await;
    port.store(address.port, SeqCst);
    (address, task)
}

#[test]
fn an_epoch_without_a_record_after_compaction_is_no_truncation() {
    runtime::block_on(2, async {
        let end = Arc::new(Mutex::new((0, 0)));
        let (leader, _leading) = leader(6, end.clone()).await;
        let mut consumer = consumer(vec![leader]);
        for (found, expected) in [
            // The epoch has ended after what was read, or before it.
            ((5, 130), 110),
            ((5, 105), 105),
            // The one before, and where the next one begins: what was read was compacted, or cut off.
            ((4, 110), 110),
            ((4, 120), 110),
            ((4, 100), 100),
            // Neither is known.
            ((-1, -1), 0),
        ] {
            *end.lock().unwrap() = found;
            assert_eq!(consumer.common_end(110, 5).await.unwrap(), expected, "{found:?}");
        }
    });
}

#[test]
fn a_leader_that_is_older_than_what_was_read_proves_no_truncation() {
    runtime::block_on(2, async {
        let nothing = Arc::new(Mutex::new((-1, -1)));
        let (cut_off, _cut_off) = leader(5, nothing.clone()).await;
        let (elected, _elected) = leader(6, Arc::new(Mutex::new((6, 130)))).await;
        // As after a restart: nothing is known of epochs yet.
        let mut restarted = consumer(vec![cut_off.clone(), elected]);
        let outdated = restarted.common_end(110, 6).await;
        assert!(matches!(outdated, Err(Error::OutdatedLeader { found: 5, read: 6 })), "{outdated:?}");
        assert_eq!(restarted.common_end(110, 6).await.unwrap(), 110);
        // The other one is down.
        let mut alone = consumer(vec![cut_off, loopback(testbed::ports::free())]);
        for _ in 0..3 {
            let outdated = alone.common_end(110, 6).await;
            assert!(matches!(outdated, Err(Error::OutdatedLeader { found: 5, read: 6 })), "{outdated:?}");
        }
    });
}
