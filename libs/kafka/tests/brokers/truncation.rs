//! A log that loses its tail, as after a power cut.

use kafka::{Consumer, Error, Producer};
use testbed::{broker::Kind, until};

use super::{WAIT, numbered, own_broker, read, record, send, until_sent};

/// Nisshi has no leader epochs.
mod on_kafka_alone {
    use super::*;

    #[test]
    fn a_consumer_knows_up_to_where_a_truncated_log_is_the_one_that_it_has_read() {
        truncate_and_refill(Kind::Kafka);
    }
}

mod on_older_kafka_alone {
    use super::*;

    #[test]
    fn a_consumer_knows_up_to_where_a_truncated_log_is_the_one_that_it_has_read() {
        truncate_and_refill(Kind::OlderKafka);
    }
}

fn truncate_and_refill(kind: Kind) {
    runtime::block_on(2, async move {
        let (scratch, mut broker, settings, topic) = own_broker(kind, "").await;
        let mut producer = Producer::new(settings.clone(), &topic);
        for _ in 0..3 {
            send(&mut producer, 0, numbered(0..2)).await.unwrap();
        }
        let mut consumer = Consumer::new(settings.clone(), &topic, 0);
        let first = consumer.fetch(0, 1, WAIT).await.unwrap();
        assert_eq!(first.next, 2);
        let fetched = consumer.fetch(2, 1 << 20, WAIT).await.unwrap();
        let epoch = fetched.leader_epoch.unwrap();
        assert_eq!((fetched.next, first.leader_epoch), (6, Some(epoch)));
        assert_eq!(consumer.common_end(6, epoch).await.unwrap(), 6);

        broker.process().kill().await;
        broker.truncate_log(&topic, 0, 2).unwrap();
        broker.restart().await.unwrap();
        scratch.guard(broker.process()).unwrap();
        until("the log has lost its tail", async || consumer.offsets().await.is_ok_and(|offsets| offsets == (0..4)))
            .await;
        assert_eq!(consumer.common_end(6, epoch).await.unwrap(), 4);
        assert!(matches!(consumer.fetch(6, 1 << 20, WAIT).await, Err(Error::OffsetOutOfRange)));
        until_sent(&mut producer).await;
        for _ in 0..3 {
            send(&mut producer, 0, vec![record("refilled")]).await.unwrap();
        }
        assert_eq!(read(&mut consumer, 6, 2).await, ["refilled", "refilled"], "a fetch alone does not notice it");
        if kind == Kind::OlderKafka {
            // Its controller may give the only broker the same epoch again: then it has both records of it.
            return;
        }
        assert_eq!(consumer.common_end(6, epoch).await.unwrap(), 4);
        assert_eq!(consumer.common_end(4, epoch).await.unwrap(), 4, "nothing before it was lost");
        let refilled = consumer.fetch(4, 1 << 20, WAIT).await.unwrap();
        let later = refilled.leader_epoch.unwrap();
        assert!(later > epoch, "{later}, {epoch}");
        assert_eq!(consumer.common_end(8, later).await.unwrap(), 8);
        let outdated = consumer.common_end(8, later + 1).await;
        assert!(matches!(outdated, Err(Error::OutdatedLeader { .. })), "no leader has had this epoch: {outdated:?}");
    });
}
