//! A client that exceeds its quota.

use std::time::{Duration, Instant};

use kafka::{Consumer, Producer, Settings, testing::set_quotas};
use testbed::broker::Kind;

use crate::{WAIT, record, send, topic};

testbed::on_each_kafka!(fetches_that_a_consumer_quota_throttles_are_delayed_and_do_not_fail);

/// Bytes per second; brokers measure them over ten seconds.
const QUOTA: u32 = 4096;
const BATCHES: u32 = 30;
const BATCH_BYTES: u32 = 2000;
/// Several times the time that it takes by the quota.
const TIMEOUT: Duration = Duration::from_secs(120);

fn fetches_that_a_consumer_quota_throttles_are_delayed_and_do_not_fail(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let topic = topic(&settings, 1).await;
        let mut producer = Producer::new(settings.clone(), &topic);
        for _ in 0..BATCHES {
            send(&mut producer, 0, vec![record(vec![b'x'; BATCH_BYTES as usize])]).await.unwrap();
        }
        set_quotas(&settings, "throttled", None, Some(QUOTA.into())).await.unwrap();
        let throttled = Settings { client_id: "throttled", deadline: Duration::from_secs(2), ..settings };
        let mut consumer = Consumer::new(throttled.clone(), &topic, 0);
        let (started, mut next, mut read, mut without_records) = (Instant::now(), 0, 0, 0);
        while read < BATCHES || without_records == 0 {
            let fetched = consumer.fetch(next, 1 << 20, WAIT).await.unwrap();
            assert_eq!(fetched.high_watermark, i64::from(BATCHES));
            let records = fetched.records.iter().count() as u32;
            (next, read) = (fetched.next, read + records);
            if next == i64::from(BATCHES) {
                // The quota takes effect a moment after it was set: read again until it does.
                next = 0;
            }
            without_records += u32::from(records == 0);
            assert!(
                started.elapsed() < TIMEOUT,
                "{read} of {BATCHES} read, {without_records} responses without records"
            );
        }
        println!("{kind}: {:?}, {without_records} responses without records", started.elapsed());
        // The quota is shared by the client id: another consumer is throttled from the start.
        let fetched = Consumer::new(throttled, &topic, 0).fetch(0, 1 << 20, WAIT).await.unwrap();
        assert!(!fetched.records.is_empty() && fetched.high_watermark == i64::from(BATCHES));
    });
}
