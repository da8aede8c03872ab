//! A log that is damaged on disk.

use std::{fs, os::unix::fs::FileExt as _};

use kafka::{Consumer, Error, Malformed, Producer, Settings};
use testbed::broker::{Broker, Kind};

use super::{WAIT, numbered, own_broker, send};

/// The third and the highest byte of a batch's last offset delta, and one of its timestamps.
const DAMAGED: [u64; 3] = [25, 23, 40];
/// The two low bytes of a batch's length.
const DAMAGED_LENGTH: [u64; 2] = [10, 11];

/// Nisshi's log is a database.
mod on_kafka_alone {
    use super::*;

    #[test]
    fn a_damaged_batch_costs_no_record_of_another_one() {
        read_around_damage(Kind::Kafka);
    }

    #[test]
    fn a_damaged_length_skips_no_other_batch() {
        read_up_to_damage(Kind::Kafka);
    }
}

mod on_older_kafka_alone {
    use super::*;

    #[test]
    fn a_damaged_batch_costs_no_record_of_another_one() {
        read_around_damage(Kind::OlderKafka);
    }

    #[test]
    fn a_damaged_length_skips_no_other_batch() {
        read_up_to_damage(Kind::OlderKafka);
    }
}

fn read_around_damage(kind: Kind) {
    runtime::block_on(2, async move {
        let (_scratch, broker, settings, topic) = own_broker(kind, "").await;
        let ends = send_four_batches(&broker, &settings, &topic).await;
        for byte in DAMAGED {
            // The first of the two has another one after it, the second is the last one.
            for (start, first_offset) in [(ends[0], 3), (ends[2], 9)] {
                flip(&broker, &topic, start + byte);
                for max_bytes in [1 << 20, 1] {
                    let (values, skipped) = read_all(Consumer::new(settings.clone(), &topic, 0), max_bytes).await;
                    let expected = (0..12).filter(|n| !(first_offset..first_offset + 3).contains(n));
                    assert_eq!(values, expected.collect::<Vec<_>>(), "byte {byte} of the batch at {first_offset}");
                    assert_eq!((skipped.first(), skipped.last()), (Some(&first_offset), Some(&(first_offset + 2))));
                }
                flip(&broker, &topic, start + byte);
            }
        }
    });
}

fn read_up_to_damage(kind: Kind) {
    runtime::block_on(2, async move {
        let (_scratch, broker, settings, topic) = own_broker(kind, "").await;
        let ends = send_four_batches(&broker, &settings, &topic).await;
        for byte in DAMAGED_LENGTH {
            flip(&broker, &topic, ends[0] + byte);
            let mut consumer = Consumer::new(settings.clone(), &topic, 0);
            let skipped = loop {
                match consumer.fetch(3, 1 << 20, WAIT).await {
                    Err(Error::Malformed(Malformed::Checksum)) => {}
                    fetched => break fetched.unwrap(),
                }
            };
            assert_eq!((skipped.next, skipped.unreadable.unwrap().first_offset), (6, 3), "byte {byte}");
            // The broker looks for it from the damaged batch on.
            let lost = consumer.fetch(6, 1 << 20, WAIT).await;
            assert!(matches!(lost, Err(Error::Malformed(Malformed::NoRecordsReturned))), "{lost:?}");
            flip(&broker, &topic, ends[0] + byte);
            assert_eq!(consumer.fetch(6, 1 << 20, WAIT).await.unwrap().next, 12);
        }
    });
}

/// Sends four batches of three records; returns where each ends in the log.
async fn send_four_batches(broker: &Broker, settings: &Settings, topic: &str) -> Vec<u64> {
    let mut producer = Producer::new(settings.clone(), topic);
    let mut ends = Vec::new();
    for batch in 0..4 {
        send(&mut producer, 0, numbered(batch * 3..(batch + 1) * 3)).await.unwrap();
        ends.push(fs::metadata(broker.log_segment(topic, 0)).unwrap().len());
    }
    ends
}

/// Flips a bit of a byte in the log of the running broker.
fn flip(broker: &Broker, topic: &str, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(broker.log_segment(topic, 0)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// The numbers on the topic, and the offsets that were skipped.
async fn read_all(mut consumer: Consumer, max_bytes: i32) -> (Vec<i64>, Vec<i64>) {
    let (mut values, mut skipped, mut next) = (Vec::new(), Vec::new(), 0);
    while next < 12 {
        let fetched = match consumer.fetch(next, max_bytes, WAIT).await {
            Err(Error::Malformed(Malformed::Checksum)) => continue,
            fetched => fetched.unwrap(),
        };
        let number = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap().parse::<i64>().unwrap();
        values.extend(fetched.records.iter().map(|record| number(record.value.unwrap())));
        skipped.extend(fetched.unreadable.iter().flat_map(|batch| batch.first_offset..=batch.last_offset));
        next = fetched.next;
    }
    (values, skipped)
}
