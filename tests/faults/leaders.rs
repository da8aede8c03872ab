//! The leaders of the topic's partitions move to another node of the Kafka cluster.

use testbed::{Scratch, Signal, kafka_cluster::KafkaCluster, system::BackingServices, until, writers::Writers};

use crate::support::{TIMEOUT, start, stop_and_audit};

/// Nisshi has one node only.
mod on_kafka_alone {
    use super::*;

    #[test]
    fn leaders_that_move_delay_events_and_lose_none() {
        runtime::block_on(2, async {
            let scratch = Scratch::new().unwrap();
            let mut cluster = KafkaCluster::start(&scratch).await.unwrap_or_else(|error| panic!("{error}"));
            let backing_services = BackingServices::on_broker(cluster.addresses()).await;
            let system = start(backing_services, 1, &[("KAFKA_DEADLINE", "2s")]).await;
            let writers = Writers::start(&[system.patients[0].address()], 4);
            let events_are_applied = async || {
                let expected = writers.acknowledged().count() as i64 + 20;
                writers.until(expected as usize, TIMEOUT).await.unwrap();
                system.until_summary(TIMEOUT, |summary| summary["created"].as_i64() >= Some(expected)).await.unwrap();
            };
            // A node that shuts down cleanly, and one that is stopped and afterwards still considers itself the leader.
            for frozen in [false, true] {
                until("the second node leads some partitions", async || {
                    cluster.led_by_second("patient").await.unwrap() > 0
                })
                .await;
                events_are_applied().await;
                if frozen {
                    cluster.second.process().signal(Signal::STOP);
                } else {
                    cluster.second.stop().await;
                }
                until("the first node leads every partition", async || {
                    cluster.led_by_second("patient").await.unwrap() == 0
                })
                .await;
                events_are_applied().await;
                if frozen {
                    cluster.second.process().signal(Signal::CONT);
                } else {
                    cluster.second.restart().await.unwrap();
                    scratch.guard(cluster.second.process()).unwrap();
                }
                until("the second node leads again", async || cluster.led_by_second("patient").await.unwrap() > 0)
                    .await;
                events_are_applied().await;
            }
            let (written, report) = stop_and_audit(writers, &system).await;
            assert_eq!((written.unanswered, written.responses.get(&503)), (0, None), "{written}\n{report}");
        });
    }
}
