//! Negotiation of request versions.

use std::sync::{Arc, Mutex};

use kafka_protocol::{
    error::ResponseError,
    messages::{ApiVersionsRequest, ApiVersionsResponse},
};

use super::{
    broker::{LOWEST, any_broker, supporting},
    *,
};

/// API keys and versions of requests.
type Log = Arc<Mutex<Vec<(ApiKey, i16)>>>;

/// A broker that leads the partition, supports these versions, and logs its requests.
async fn leading(versions: ApiVersionsResponse) -> (HostPort, smol::Task<()>, Log) {
    let log = Log::default();
    let (noted, port) = (log.clone(), Arc::new(AtomicU16::new(0)));
    let own_port = port.clone();
    let response = move |received: &ReceivedRequest| {
        noted.lock().unwrap().push((received.key, received.version));
        match received.key {
            ApiKey::ApiVersions => received.response(&versions),
            ApiKey::Metadata => metadata_response(received.correlation, "127.0.0.1", own_port.load(SeqCst)),
            _ => fetch_response(received.correlation, 0),
        }
    };
    let (address, task) = any_broker(response).await;
    port.store(address.port, SeqCst);
    (address, task, log)
}

#[test]
fn each_connection_negotiates_versions_once_and_uses_the_highest() {
    runtime::block_on(2, async {
        let (broker, _broker, log) = leading(supporting(&LOWEST)).await;
        let mut consumer = consumer(vec![broker]);
        for _ in 0..2 {
            fetch(&mut consumer).await.unwrap();
        }
        let expected = [
            (ApiKey::ApiVersions, 4),
            (ApiKey::Metadata, 4),
            (ApiKey::ApiVersions, 4),
            (ApiKey::Fetch, 4),
            (ApiKey::Fetch, 4),
        ];
        assert_eq!(*log.lock().unwrap(), expected);
    });
}

#[test]
fn api_versions_is_sent_again_in_a_version_that_the_broker_supports() {
    runtime::block_on(2, async {
        for (supported, expected) in [(Some(0..=2), 2), (None, 0)] {
            let (leader, _leader) = broker(|received| fetch_response(received.correlation, 0)).await;
            let response = move |received: &ReceivedRequest| match received.key {
                ApiKey::ApiVersions if received.version != expected => {
                    // Brokers before Apache Kafka 2.4 do not send the versions that they support.
                    let supported = supported.clone().map(|versions| (ApiKey::ApiVersions, versions));
                    let unsupported = supporting(supported.as_slice());
                    received.response_in(0, &unsupported.with_error_code(ResponseError::UnsupportedVersion.code()))
                }
                ApiKey::ApiVersions => {
                    received.decode::<ApiVersionsRequest>();
                    received.response(&supporting(&LOWEST))
                }
                _ => metadata_response(received.correlation, "127.0.0.1", leader.port),
            };
            let (bootstrap, _bootstrap) = any_broker(response).await;
            fetch(&mut consumer(vec![bootstrap])).await.unwrap();
        }
    });
}

#[test]
fn a_broker_without_a_common_version_is_an_error_with_its_versions() {
    runtime::block_on(2, async {
        for (versions, expected) in [
            (vec![(ApiKey::Fetch, 19..=25)], "supports Fetch in versions 19 to 25, and this client 4 to 12"),
            (vec![], "supports no Fetch"),
        ] {
            let versions: Vec<_> =
                LOWEST.into_iter().filter(|(key, _)| *key != ApiKey::Fetch).chain(versions).collect();
            let (broker, _broker, _) = leading(supporting(&versions)).await;
            let error = fetch(&mut consumer(vec![broker])).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    });
}

#[test]
fn an_error_code_in_api_versions_is_an_error() {
    runtime::block_on(2, async {
        let rejected = ApiVersionsResponse::default().with_error_code(ResponseError::InvalidRequest.code());
        let (broker, _broker, log) = leading(rejected).await;
        let error = fetch(&mut consumer(vec![broker])).await.unwrap_err();
        assert!(error.to_string().contains("InvalidRequest"), "{error}");
        assert_eq!(log.lock().unwrap().len(), 1);
    });
}
