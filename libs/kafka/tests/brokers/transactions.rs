//! Records of transactions.

use kafka::{Fetched, testing::TransactionalProducer};

use super::*;

// Nisshi accepts transactions, and returns aborted records like others.
testbed::on_each_kafka!(
    records_of_an_aborted_transaction_are_not_read_and_leave_no_lag,
    an_open_transaction_blocks_later_records_and_is_reported,
    interleaved_transactions_of_several_producers_are_distinguished,
);

/// The broker aborts a transaction after this time.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

async fn transactional(settings: &Settings, name: &str) -> TransactionalProducer {
    let id = format!("{name}-{:016x}", fastrand::u64(..));
    TransactionalProducer::new(settings.clone(), &id, TRANSACTION_TIMEOUT).await.unwrap()
}

/// All values from an offset on, and the last fetch.
async fn read_to_end(consumer: &mut Consumer, mut next: i64, max_bytes: i32) -> (Vec<String>, Fetched) {
    let mut values = Vec::new();
    loop {
        let fetched = consumer.fetch(next, max_bytes, WAIT).await.unwrap();
        values.extend(fetched.records.iter().map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
        if fetched.next == next {
            return (values, fetched);
        }
        next = fetched.next;
    }
}

fn records_of_an_aborted_transaction_are_not_read_and_leave_no_lag(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let topic = topic(&settings, 1).await;
        let mut producer = transactional(&settings, "aborting").await;
        let mut consumer = Consumer::new(settings.clone(), &topic, 0);
        let mut plain = Producer::new(settings, &topic);

        producer.send(&topic, 0, &numbered(0..3)).await.unwrap();
        send(&mut plain, 0, numbered(3..4)).await.unwrap();
        producer.end(false).await.unwrap();
        producer.send(&topic, 0, &numbered(4..5)).await.unwrap();
        producer.end(true).await.unwrap();
        let (values, last) = read_to_end(&mut consumer, 0, 1 << 20).await;
        assert_eq!(values, ["3", "4"]);
        // Five records and two markers.
        assert_eq!((last.next, last.high_watermark, last.last_stable_offset), (7, 7, 7));
        assert!(!last.is_blocked_by_transaction());
        assert_eq!(consumer.offsets().await.unwrap(), 0..7);

        // An aborted record and its marker alone.
        producer.send(&topic, 0, &numbered(5..6)).await.unwrap();
        producer.end(false).await.unwrap();
        for from in 7..=9 {
            let (values, last) = read_to_end(&mut consumer, from, 1 << 20).await;
            assert!(values.is_empty(), "{values:?}");
            assert_eq!((last.next, last.high_watermark), (9, 9), "from {from}");
        }
    });
}

fn an_open_transaction_blocks_later_records_and_is_reported(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let topic = topic(&settings, 1).await;
        let mut producer = transactional(&settings, "open").await;
        let mut consumer = Consumer::new(settings.clone(), &topic, 0);
        let mut plain = Producer::new(settings, &topic);
        send(&mut plain, 0, numbered(0..2)).await.unwrap();
        producer.send(&topic, 0, &numbered(2..3)).await.unwrap();
        send(&mut plain, 0, numbered(3..5)).await.unwrap();

        let (values, last) = read_to_end(&mut consumer, 0, 1 << 20).await;
        assert_eq!(values, ["0", "1"]);
        assert_eq!((last.next, last.last_stable_offset, last.high_watermark), (2, 2, 5));
        assert!(last.is_blocked_by_transaction());
        // It waits for a record once, not again for a larger batch.
        let started = Instant::now();
        assert_eq!(consumer.fetch(2, 1 << 20, Duration::from_secs(2)).await.unwrap().next, 2);
        assert!(started.elapsed() < Duration::from_millis(3800), "{:?}", started.elapsed());

        producer.end(true).await.unwrap();
        assert_eq!(read(&mut consumer, 2, 3).await, ["2", "3", "4"]);
        let (_, last) = read_to_end(&mut consumer, 2, 1 << 20).await;
        assert!(last.next == 6 && last.high_watermark == 6 && !last.is_blocked_by_transaction(), "{last:?}");
    });
}

fn interleaved_transactions_of_several_producers_are_distinguished(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let topic = topic(&settings, 1).await;
        let mut producers = Vec::new();
        for name in ["one", "two", "three"] {
            producers.push((transactional(&settings, name).await, Vec::new()));
        }
        let mut plain = Producer::new(settings.clone(), &topic);
        let (mut number, mut expected) = (0, Vec::new());
        for _ in 0..60 {
            let count = fastrand::u32(1..4);
            let (producer, open) = &mut producers[fastrand::usize(..3)];
            match fastrand::u8(..4) {
                0 => {
                    send(&mut plain, 0, numbered(number..number + count)).await.unwrap();
                    expected.extend(number..number + count);
                }
                1 if !open.is_empty() => {
                    let committed = fastrand::bool();
                    producer.end(committed).await.unwrap();
                    expected.extend(open.drain(..).filter(|_| committed));
                }
                _ => {
                    producer.send(&topic, 0, &numbered(number..number + count)).await.unwrap();
                    open.extend(number..number + count);
                }
            }
            number += count;
        }
        for (producer, open) in producers.iter_mut().filter(|(_, open)| !open.is_empty()) {
            producer.end(true).await.unwrap();
            expected.append(open);
        }
        // A broker writes the markers a moment after its response to EndTxn.
        let mut consumer = Consumer::new(settings, &topic, 0);
        let started = Instant::now();
        while consumer
            .fetch(0, 1, WAIT)
            .await
            .map(|fetched| fetched.last_stable_offset < fetched.high_watermark)
            .unwrap()
        {
            assert!(started.elapsed() < Duration::from_secs(30), "a transaction stays open");
        }
        expected.sort_unstable();
        let expected: Vec<_> = expected.into_iter().map(|number| number.to_string()).collect();
        for max_bytes in [1, 300, 1 << 20] {
            let (values, last) = read_to_end(&mut consumer, 0, max_bytes).await;
            assert_eq!(values, expected, "{max_bytes} bytes a fetch");
            assert_eq!(last.next, last.high_watermark);
        }
    });
}
