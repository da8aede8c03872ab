//! Configurations of topics.

use std::collections::BTreeMap;

use kafka::{Error, Producer, Record, create_topic, create_topic_with, topic_configuration};
use testbed::broker::Kind;

use crate::{record, send};

// Nisshi takes the configuration, and closes the connection when it is asked for one.
testbed::on_each_kafka!(a_topic_has_the_configuration_that_it_was_created_with);

const NAMES: [&str; 2] = ["cleanup.policy", "max.compaction.lag.ms"];

fn a_topic_has_the_configuration_that_it_was_created_with(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let [ordinary, compacted] = [(); 2].map(|()| format!("test-{:016x}", fastrand::u64(..)));
        assert!(create_topic(&settings, &ordinary, 1).await.unwrap());
        let configuration = [("cleanup.policy", "compact"), ("max.compaction.lag.ms", "604800000")];
        assert!(create_topic_with(&settings, &compacted, 1, &configuration).await.unwrap());
        let other = [("cleanup.policy", "delete")];
        assert!(!create_topic_with(&settings, &compacted, 1, &other).await.unwrap(), "it exists");
        let values = async |topic: &str| topic_configuration(&settings, topic, &NAMES).await;
        let expected = |values: [(&str, &str); 2]| BTreeMap::from(values.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert_eq!(values(&compacted).await.unwrap(), expected(configuration));
        let brokers = [("cleanup.policy", "delete"), ("max.compaction.lag.ms", &i64::MAX.to_string())];
        assert_eq!(values(&ordinary).await.unwrap(), expected(brokers));
        assert!(matches!(values("missing").await, Err(Error::UnknownTopic)));

        let mut producer = Producer::new(settings.clone(), &compacted);
        send(&mut producer, 0, vec![record("keyed")]).await.unwrap();
        let rejected = send(&mut producer, 0, vec![Record { key: None, ..record("without a key") }]).await;
        assert!(matches!(rejected, Err(Error::RecordRejected(_))), "{rejected:?}");
    });
}
