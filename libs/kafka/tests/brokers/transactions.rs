//! Records that were sent in transactions.

use kafka::{Fetched, testing::TransactionalProducer};

use super::*;

// Nisshi takes transactions, and gives what was aborted like anything else.
testbed::on_each_kafka!(
    what_a_transaction_aborted_is_not_read_and_nothing_lags_at_the_end,
    an_open_transaction_holds_the_rest_up_and_is_told,
    transactions_of_several_producers_are_told_apart,
);

/// A broker ends a transaction by itself after this time.
const LIMIT: Duration = Duration::from_secs(60);

async fn transactional(settings: &Settings, name: &str) -> TransactionalProducer {
    let id = format!("{name}-{:016x}", fastrand::u64(..));
    TransactionalProducer::new(settings.clone(), &id, LIMIT).await.unwrap()
}

/// Everything from an offset on, and the last fetch.
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

fn what_a_transaction_aborted_is_not_read_and_nothing_lags_at_the_end(kind: Kind) {
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
        assert!(!last.is_held_up());
        assert_eq!(consumer.offsets().await.unwrap(), 0..7);

        // A marker at the end of what is left of an aborted transaction alone.
        producer.send(&topic, 0, &numbered(5..6)).await.unwrap();
        producer.end(false).await.unwrap();
        for from in 7..=9 {
            let (values, last) = read_to_end(&mut consumer, from, 1 << 20).await;
            assert!(values.is_empty(), "{values:?}");
            assert_eq!((last.next, last.high_watermark), (9, 9), "from {from}");
        }
    });
}

fn an_open_transaction_holds_the_rest_up_and_is_told(kind: Kind) {
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
        assert!(last.is_held_up());
        // It waits once for a record, not once more for a larger batch.
        let started = Instant::now();
        assert_eq!(consumer.fetch(2, 1 << 20, Duration::from_secs(1)).await.unwrap().next, 2);
        assert!(started.elapsed() < Duration::from_millis(1800), "{:?}", started.elapsed());

        producer.end(true).await.unwrap();
        assert_eq!(read(&mut consumer, 2, 3).await, ["2", "3", "4"]);
        let (_, last) = read_to_end(&mut consumer, 2, 1 << 20).await;
        assert!(last.next == 6 && last.high_watermark == 6 && !last.is_held_up(), "{last:?}");
    });
}

fn transactions_of_several_producers_are_told_apart(kind: Kind) {
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
        // A broker writes its markers a moment after it has said that a transaction is ended.
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
