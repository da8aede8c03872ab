//! The configuration of the topic: patient-service makes a compacted one, and reports another.

use kafka::topic_configuration;
use serde_json::json;
use testbed::{
    audit::{Acknowledged, Auditor},
    broker::Kind,
    system::BackingServices,
    until,
};

use crate::support::{audit, logged, register_many, start};

// Nisshi does not tell configurations.
testbed::on_each_kafka!(a_new_topic_is_compacted_and_another_is_reported);

/// The default of the service, which systems of tests do not have.
const COMPACT: (&str, &str) = ("KAFKA_TOPIC_CLEANUP_POLICY", "compact");

const REPORT: &str = "the topic exists with another configuration: it may lose events that nobody has read, grow with every \
    event, or keep the names of deleted patients; change it with kafka-configs.sh, or set KAFKA_TOPIC_CLEANUP_POLICY=delete";

fn a_new_topic_is_compacted_and_another_is_reported(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = start(BackingServices::shared(kind).await, 1, &[COMPACT]).await;
        let acknowledged = Acknowledged::default();
        register_many(&system.patient_client(), &acknowledged, 3).await;
        audit(&system, &acknowledged).await;
        let Auditor { kafka, topic, .. } = Auditor::of(&system);
        let names = ["cleanup.policy", "min.compaction.lag.ms", "max.compaction.lag.ms"];
        let found = topic_configuration(&kafka, &topic, &names).await.unwrap();
        let expected = json!({
            "cleanup.policy": "compact", "min.compaction.lag.ms": "86400000", "max.compaction.lag.ms": "604800000",
        });
        assert_eq!(json!(found), expected);
        assert_eq!(logged(&system.patients[0], REPORT), 0);
        system.patients[0].stop().await;

        let other = BackingServices::shared(kind).await;
        kafka::create_topic(&kafka, &other.topic, 3).await.unwrap();
        let system = start(other, 1, &[COMPACT]).await;
        let acknowledged = Acknowledged::default();
        register_many(&system.patient_client(), &acknowledged, 3).await;
        until("it is reported", async || logged(&system.patients[0], REPORT) == 1).await;
        assert!(system.patients[0].log().contains("cleanup.policy=delete"));
        audit(&system, &acknowledged).await;
    });
}
