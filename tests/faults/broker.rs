//! The broker is down, stopped or restarted, or its responses are lost.

use std::time::{Duration, Instant};

use kafka::testing::add_partitions;
use testbed::{
    Scratch, Signal,
    audit::Acknowledged,
    broker::{Broker, Kind},
    proxy::{Mode, Proxy, Target},
    system::{BackingServices, DedicatedServers},
    until,
};

use crate::support::{
    TIMEOUT, audit, logged, metric, readiness, register, register_many, start, until_metric, until_readiness,
};

testbed::on_each_broker!(
    registrations_are_answered_while_the_broker_is_down_or_frozen,
    lost_acknowledgements_duplicate_events_and_lose_none,
);

/// `KAFKA_DEADLINE` in these tests, and a margin for a busy machine.
const DEADLINE: Duration = Duration::from_secs(2);
const MARGIN: Duration = Duration::from_secs(3);
const SETTINGS: [(&str, &str); 1] = [("KAFKA_DEADLINE", "2s")];

fn registrations_are_answered_while_the_broker_is_down_or_frozen(kind: Kind) {
    runtime::block_on(2, async {
        let mut servers = DedicatedServers::start(kind).await.unwrap_or_else(|error| panic!("{error}"));
        servers.broker.process().kill().await;
        // It is down when the services start.
        let system = start(servers.backing_services(), 1, &SETTINGS).await;
        let (client, acknowledged) = (system.patient_client(), Acknowledged::default());
        register_many(&client, &acknowledged, 5).await;
        until_readiness(&system.patients[0], "kafka", 200, "DEGRADED").await;
        until_readiness(&system.analytics, "kafka", 200, "DEGRADED").await;
        until_metric(&system.patients[0], "outbox_pending{shard=\"0\"}", |pending| pending >= 5.0).await;
        servers.restart_broker().await.unwrap();
        audit(&system, &acknowledged).await;

        let median = |times: &[Duration]| times[times.len() / 2];
        let usual = register_many(&client, &acknowledged, 50).await;
        for (outages, freeze) in (2..).zip([true, false]) {
            let injected = Instant::now();
            if freeze {
                servers.broker.process().signal(Signal::STOP);
            } else {
                servers.broker.process().kill().await;
            }
            register(&client, &acknowledged).await;
            // The first call that exceeds its deadline reports the outage.
            until_readiness(&system.patients[0], "kafka", 200, "DEGRADED").await;
            assert!(injected.elapsed() < DEADLINE + MARGIN, "{:?}", injected.elapsed());
            let during = register_many(&client, &acknowledged, 50).await;
            assert!(
                median(&during) < median(&usual) * 2 + Duration::from_millis(10),
                "registrations take as long as before: {:?}, {:?} before",
                median(&during),
                median(&usual)
            );
            assert!(during[49] < Duration::from_secs(1), "{:?}", during[49]);
            until_metric(&system.patients[0], "outbox_pending{shard=\"0\"}", |pending| pending >= 51.0).await;
            until_metric(&system.patients[0], "outbox_oldest_age_seconds{shard=\"0\"}", |age| age >= 1.0).await;
            until_readiness(&system.analytics, "kafka", 200, "DEGRADED").await;
            if freeze {
                let timeout = "kafka_calls_total{operation=\"produce\",outcome=\"timeout\"}";
                assert!(metric(&system.patients[0], timeout).await.is_some());
                servers.broker.process().signal(Signal::CONT);
            } else {
                servers.restart_broker().await.unwrap();
            }
            audit(&system, &acknowledged).await;
            until_metric(&system.patients[0], "outbox_pending{shard=\"0\"}", |pending| pending == 0.0).await;
            until_readiness(&system.patients[0], "kafka", 200, "UP").await;
            until_readiness(&system.analytics, "kafka", 200, "UP").await;
            for (service, begin, end) in [
                (
                    &system.patients[0],
                    "events cannot be published; they wait in the outbox",
                    "events can be published again",
                ),
                (&system.analytics, "events cannot be read; they wait on the topic", "events can be read again"),
            ] {
                until("the end of the outage is logged", async || logged(service, end) >= outages).await;
                let counts = (logged(service, begin), logged(service, end));
                assert_eq!(counts, (outages, outages), "each outage is logged once, and so is its end: {begin}");
            }
        }
    });
}

fn lost_acknowledgements_duplicate_events_and_lose_none(kind: Kind) {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let proxy = Proxy::start().await.unwrap();
        let started = Broker::start_behind_proxy(kind, &scratch.path().join("broker"), proxy.port()).await;
        let mut broker = started.unwrap_or_else(|error| panic!("{error}"));
        scratch.guard(broker.process()).unwrap();
        proxy.set_target(Target::Port(broker.port()));
        let backing_services = BackingServices::on_broker(format!("127.0.0.1:{}", proxy.port())).await;
        let system = start(backing_services, 1, &SETTINGS).await;
        let (client, acknowledged) = (system.patient_client(), Acknowledged::default());
        // Every partition's leader has a connection.
        register_many(&client, &acknowledged, 40).await;
        audit(&system, &acknowledged).await;

        // The broker writes the events, but its responses are lost.
        proxy.set(Mode::StallResponses);
        register_many(&client, &acknowledged, 5).await;
        until_readiness(&system.patients[0], "kafka", 200, "DEGRADED").await;
        proxy.set(Mode::Pass);
        let report = audit(&system, &acknowledged).await;
        assert!(report.duplicates > 0, "{report}");
        let repeated = metric(&system.analytics, "events_duplicate_total").await.unwrap();
        assert_eq!(repeated, report.duplicates as f64);

        // Half-open connections: nothing is forwarded, and then they are reset.
        proxy.set(Mode::Stall);
        register_many(&client, &acknowledged, 5).await;
        until("both have noticed", async || {
            let noticed = (200, "DEGRADED".to_owned());
            readiness(&system.patients[0], "kafka").await == noticed
                && readiness(&system.analytics, "kafka").await == noticed
        })
        .await;
        proxy.set(Mode::Reset);
        register_many(&client, &acknowledged, 5).await;
        proxy.set(Mode::Pass);
        audit(&system, &acknowledged).await;
        system.until_summary(TIMEOUT, |summary| summary["created"] == 55).await.unwrap();
    });
}

mod on_kafka_alone {
    use super::*;

    /// Analytics is told to read a partition that does not exist before the end. Nisshi cannot add one.
    #[test]
    fn an_outage_is_over_once_every_partition_was_read() {
        runtime::block_on(2, async {
            const BEGIN: &str = "events cannot be read; they wait on the topic";
            const END: &str = "events can be read again";
            let mut servers = DedicatedServers::start(Kind::Kafka).await.unwrap_or_else(|error| panic!("{error}"));
            servers.broker.process().kill().await;
            let settings = [("KAFKA_DEADLINE", "2s"), ("KAFKA_TOPIC_PARTITIONS", "3"), ("PARTITIONS", "0,1,2,3")];
            let system = start(servers.backing_services(), 1, &settings).await;
            until_readiness(&system.analytics, "kafka", 200, "DEGRADED").await;
            servers.restart_broker().await.unwrap();
            register_many(&system.patient_client(), &Acknowledged::default(), 5).await;
            system.until_summary(TIMEOUT, |summary| summary["created"] == 5).await.unwrap();
            assert_eq!(readiness(&system.analytics, "kafka").await, (200, "DEGRADED".to_owned()));
            assert_eq!((logged(&system.analytics, BEGIN), logged(&system.analytics, END)), (1, 0));

            let kafka = kafka::Settings { deadline: TIMEOUT, ..servers.broker.settings("test") };
            add_partitions(&kafka, &system.backing_services().topic, 4).await.unwrap();
            until("the end of the outage is logged", async || logged(&system.analytics, END) > 0).await;
            assert_eq!((logged(&system.analytics, BEGIN), logged(&system.analytics, END)), (1, 1));
            until_readiness(&system.analytics, "kafka", 200, "UP").await;
        });
    }
}
