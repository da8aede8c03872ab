//! Batches that are too large to read into memory.

use kafka::{
    Malformed,
    testing::{Codec, bomb, send_batch},
};

use super::*;

testbed::on_each_kafka!(a_batch_that_is_too_large_is_skipped_and_reported);

fn a_batch_that_is_too_large_is_skipped_and_reported(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let settings = Settings { deadline: Duration::from_secs(30), ..settings };
        for codec in [Codec::Gzip, Codec::SnappyFramed, Codec::Lz4, Codec::Zstd] {
            let topic = topic(&settings, 1).await;
            let mut producer = Producer::new(settings.clone(), &topic);
            send(&mut producer, 0, numbered(0..2)).await.unwrap();
            // snappy compresses to a twentieth, and the broker accepts 1 MiB.
            let length = 17 << 20;
            let bomb = bomb(codec, length);
            let bytes = bomb.len();
            send_batch(&settings, &topic, 0, bomb).await.unwrap();
            send(&mut producer, 0, numbered(3..4)).await.unwrap();
            let mut consumer = Consumer::new(settings.clone(), &topic, 0);
            let first = consumer.fetch(0, 1 << 20, WAIT).await.unwrap();
            assert_eq!((first.records.iter().count(), first.next, first.unreadable), (2, 2, None), "{codec:?}");
            let skipped = consumer.fetch(2, 1 << 20, WAIT).await.unwrap();
            let unreadable = skipped.unreadable.unwrap();
            assert!(skipped.records.is_empty() && skipped.next == 3, "{codec:?}: {skipped:?}");
            assert_eq!((unreadable.first_offset, unreadable.last_offset), (2, 2));
            assert_eq!((unreadable.bytes, unreadable.reason), (bytes, Malformed::TooLarge), "{codec:?}");
            assert_eq!(read(&mut consumer, 3, 1).await, ["3"]);
        }
    });
}

mod on_nisshi_alone {
    use super::*;

    /// Nisshi decompresses batches, returns records in batches of its own, and never returns a record above the fetch size.
    #[test]
    fn a_record_that_the_broker_never_returns_is_an_error() {
        runtime::block_on(2, async {
            let settings = testbed::shared_broker(Kind::Nisshi).await;
            let settings = Settings { deadline: Duration::from_secs(30), ..settings };
            let topic = topic(&settings, 1).await;
            send_batch(&settings, &topic, 0, bomb(Codec::Zstd, 17 << 20)).await.unwrap();
            let fetched = Consumer::new(settings, &topic, 0).fetch(0, 1 << 20, WAIT).await;
            assert!(matches!(fetched, Err(Error::Malformed(Malformed::NoRecordsReturned))), "{fetched:?}");
        });
    }
}
