//! Which versions of requests are sent.

use std::sync::{Arc, Mutex};

use kafka_protocol::{
    error::ResponseError,
    messages::{ApiVersionsRequest, ApiVersionsResponse},
};

use super::{
    broker::{FIRST, any_broker, speaking},
    *,
};

/// The keys and versions in which a broker was asked.
type Log = Arc<Mutex<Vec<(ApiKey, i16)>>>;

/// A broker that leads the partition, speaks these versions, and notes what it was asked.
async fn leading(versions: ApiVersionsResponse) -> (HostPort, smol::Task<()>, Log) {
    let log = Log::default();
    let (noted, port) = (log.clone(), Arc::new(AtomicU16::new(0)));
    let own_port = port.clone();
    let answer = move |asked: &Asked| {
        noted.lock().unwrap().push((asked.key, asked.version));
        match asked.key {
            ApiKey::ApiVersions => asked.answer(&versions),
            ApiKey::Metadata => led_by(asked.correlation, "127.0.0.1", own_port.load(SeqCst)),
            _ => fetched(asked.correlation, 0),
        }
    };
    let (address, task) = any_broker(answer).await;
    port.store(address.port, SeqCst);
    (address, task, log)
}

#[test]
fn each_connection_asks_for_them_once_and_takes_the_highest() {
    runtime::block_on(2, async {
        let (broker, _broker, log) = leading(speaking(&FIRST)).await;
        let mut consumer = consumer(vec![broker]);
        for _ in 0..2 {
            fetch(&mut consumer).await.unwrap();
        }
        let asked = [
            (ApiKey::ApiVersions, 4),
            (ApiKey::Metadata, 4),
            (ApiKey::ApiVersions, 4),
            (ApiKey::Fetch, 4),
            (ApiKey::Fetch, 4),
        ];
        assert_eq!(*log.lock().unwrap(), asked);
    });
}

#[test]
fn a_broker_that_does_not_know_our_way_of_asking_is_asked_in_its_own() {
    runtime::block_on(2, async {
        for (known, then) in [(Some(0..=2), 2), (None, 0)] {
            let (leader, _leader) = broker(|asked| fetched(asked.correlation, 0)).await;
            let answer = move |asked: &Asked| match asked.key {
                ApiKey::ApiVersions if asked.version != then => {
                    // Brokers before Apache Kafka 2.4 do not say which versions they know.
                    let known = known.clone().map(|versions| (ApiKey::ApiVersions, versions));
                    let unknown = speaking(known.as_slice());
                    asked.answer_in(0, &unknown.with_error_code(ResponseError::UnsupportedVersion.code()))
                }
                ApiKey::ApiVersions => {
                    asked.request::<ApiVersionsRequest>();
                    asked.answer(&speaking(&FIRST))
                }
                _ => led_by(asked.correlation, "127.0.0.1", leader.port),
            };
            let (bootstrap, _bootstrap) = any_broker(answer).await;
            fetch(&mut consumer(vec![bootstrap])).await.unwrap();
        }
    });
}

#[test]
fn a_broker_that_speaks_no_version_of_ours_is_told_with_what_it_speaks() {
    runtime::block_on(2, async {
        for (versions, said) in [
            (vec![(ApiKey::Fetch, 19..=25)], "speaks Fetch in versions 19 to 25, and this client 4 to 12"),
            (vec![], "speaks no Fetch"),
        ] {
            let versions: Vec<_> = FIRST.into_iter().filter(|(key, _)| *key != ApiKey::Fetch).chain(versions).collect();
            let (broker, _broker, _) = leading(speaking(&versions)).await;
            let error = fetch(&mut consumer(vec![broker])).await.unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    });
}

#[test]
fn an_error_in_the_place_of_versions_is_told() {
    runtime::block_on(2, async {
        let refused = ApiVersionsResponse::default().with_error_code(ResponseError::InvalidRequest.code());
        let (broker, _broker, log) = leading(refused).await;
        let error = fetch(&mut consumer(vec![broker])).await.unwrap_err();
        assert!(error.to_string().contains("InvalidRequest"), "{error}");
        assert_eq!(log.lock().unwrap().len(), 1);
    });
}
