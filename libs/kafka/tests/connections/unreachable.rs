//! Errors for brokers that cannot be reached or do not speak the protocol.

use config::HostPort;
use kafka::{Error, Producer, create_topic, partitions};

use crate::{
    broker::{broker, foreign_server, loopback, settings},
    consumer, fetch, metadata_response, send,
};

/// The errors of every kind of call with these bootstrap brokers.
async fn errors(bootstrap: Vec<HostPort>) -> Vec<String> {
    let settings = settings(bootstrap.clone());
    let errors = [
        send(&mut Producer::new(settings.clone(), "topic")).await.err(),
        fetch(&mut consumer(bootstrap.clone())).await.err(),
        consumer(bootstrap).offsets().await.err(),
    ];
    errors
        .into_iter()
        .map(|error| {
            let error = error.unwrap();
            assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
            error.to_string()
        })
        .collect()
}

fn assert_all_contain(errors: &[String], words: &[&str]) {
    for (error, word) in errors.iter().flat_map(|error| words.iter().map(move |word| (error, word))) {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

#[test]
fn an_advertised_listener_that_cannot_be_resolved_or_reached_is_named_in_the_error() {
    runtime::block_on(2, async {
        let (unresolvable, refused) = (("no-such-host.invalid", 29092), ("127.0.0.1", testbed::ports::free()));
        for (host, port) in [unresolvable, refused] {
            let (bootstrap, _bootstrap) =
                broker(move |received| metadata_response(received.correlation, host, port)).await;
            let address = format!("{host}:{port}");
            let bootstrap_address = bootstrap.to_string();
            assert_all_contain(
                &errors(vec![bootstrap.clone()]).await,
                &[&address, &bootstrap_address, "advertised.listeners"],
            );
            // rskafka retries until the deadline, and its error has no address.
            let created = create_topic(&settings(vec![bootstrap]), "topic", 1).await.unwrap_err().to_string();
            assert_all_contain(&[created], &[&address, &bootstrap_address, "advertised.listeners"]);
        }
    });
}

#[test]
fn a_bootstrap_broker_that_cannot_be_reached_is_named_in_the_error() {
    runtime::block_on(2, async {
        let refused = loopback(testbed::ports::free());
        let unresolvable = HostPort { host: "no-such-host.invalid".to_owned(), port: 9092 };
        let (first, second) = (refused.to_string(), unresolvable.to_string());
        assert_all_contain(&errors(vec![refused.clone()]).await, &[&first, "KAFKA_BOOTSTRAP_SERVERS"]);
        assert_all_contain(&errors(vec![refused.clone(), unresolvable.clone()]).await, &[&first, &second, "resolve"]);
        let error = partitions(&settings(vec![refused, unresolvable]), "topic").await.unwrap_err().to_string();
        assert_all_contain(&[error], &[&first, &second]);
    });
}

#[test]
fn a_port_with_tls_http_or_another_protocol_is_named_in_the_error() {
    runtime::block_on(2, async {
        let servers: [(&'static [u8], &str); 7] = [
            // An alert: unexpected message, as OpenSSL and Java send it.
            (&[0x15, 3, 3, 0, 2, 2, 10], "speaks TLS"),
            (&[0x15, 3, 1, 0, 2, 2, 70], "speaks TLS"),
            (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "speaks HTTP"),
            // As a TLS listener of Kafka does.
            (b"", "perhaps its listener has another protocol"),
            (&[0, 0], "perhaps its listener has another protocol"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "perhaps it is another service"),
            (&[0, 0, 0, 8, 0, 0, 0, 77, 0, 0, 0, 0], "perhaps it is another service"),
        ];
        for (sends, words) in servers {
            let (server, _task) = foreign_server(sends).await;
            let address = server.to_string();
            assert_all_contain(&errors(vec![server]).await, &[words, &address, "KAFKA_BOOTSTRAP_SERVERS"]);
        }
    });
}
