//! The leaders of the topic's partitions move to another node of the broker.

use testbed::{Scratch, Signal, pair::Pair, system::Ground, writers::Writers};

use crate::support::{TIMEOUT, start, stop_and_audit, until};

/// Nisshi is always one node.
mod on_kafka_alone {
    use super::*;

    #[test]
    fn that_move_delay_events_and_lose_none() {
        runtime::block_on(2, async {
            let scratch = Scratch::new().unwrap();
            let mut pair = Pair::start(&scratch).await.unwrap_or_else(|error| panic!("{error}"));
            let ground = Ground {
                patients_database: testbed::shared_database().await,
                billing_database: testbed::shared_database().await,
                kafka: pair.addresses(),
                topic: "patient".to_owned(),
            };
            let system = start(ground, 1, &[("KAFKA_DEADLINE", "2s")]).await;
            let writers = Writers::start(&[system.patients[0].address()], 4);
            let events_get_on = async || {
                let wanted = writers.acknowledged().count() as i64 + 20;
                writers.until(wanted as usize, TIMEOUT).await.unwrap();
                system.until_summary(TIMEOUT, |summary| summary["created"].as_i64() >= Some(wanted)).await.unwrap();
            };
            // A node that hands over in order, and one that is silent and then still believes to lead.
            for frozen in [false, true] {
                until("it leads some", async || pair.led_by_second("patient").await.unwrap() > 0).await;
                events_get_on().await;
                if frozen {
                    pair.second.process().signal(Signal::STOP);
                } else {
                    pair.second.stop().await;
                }
                until("the other node leads", async || pair.led_by_second("patient").await.unwrap() == 0).await;
                events_get_on().await;
                if frozen {
                    pair.second.process().signal(Signal::CONT);
                } else {
                    pair.second.restart().await.unwrap();
                    scratch.guard(pair.second.process()).unwrap();
                }
                until("it leads again", async || pair.led_by_second("patient").await.unwrap() > 0).await;
                events_get_on().await;
            }
            let (written, report) = stop_and_audit(writers, &system).await;
            assert_eq!((written.unanswered, written.answers.get(&503)), (0, None), "{written}\n{report}");
        });
    }
}
