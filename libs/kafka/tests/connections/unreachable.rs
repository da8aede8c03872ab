//! What is said of brokers that cannot be talked to: which address it was, who named it, and what it is instead.

use config::HostPort;
use kafka::{Error, Producer, create_topic, partitions};

use crate::{
    broker::{broker, loopback, settings, stranger},
    consumer, fetch, led_by, send,
};

/// What every kind of call says, when the brokers at these addresses are bootstrap brokers.
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
            assert!(matches!(error, Error::Away(_)), "{error:?}");
            error.to_string()
        })
        .collect()
}

fn assert_all_say(errors: &[String], words: &[&str]) {
    for (error, word) in errors.iter().flat_map(|error| words.iter().map(move |word| (error, word))) {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

#[test]
fn a_broker_that_advertises_what_cannot_be_resolved_or_reached_is_told_with_host_port_and_listener() {
    runtime::block_on(2, async {
        let (unheard, refused) = (("no-such-host.invalid", 29092), ("127.0.0.1", testbed::ports::free()));
        for (host, port) in [unheard, refused] {
            let (bootstrap, _bootstrap) = broker(move |asked| led_by(asked.correlation, host, port)).await;
            let address = format!("{host}:{port}");
            let told_by = bootstrap.to_string();
            assert_all_say(&errors(vec![bootstrap.clone()]).await, &[&address, &told_by, "advertised.listeners"]);
            // rskafka tells no address, and tries until the deadline.
            let made = create_topic(&settings(vec![bootstrap]), "topic", 1).await.unwrap_err().to_string();
            assert_all_say(&[made], &[&address, &told_by, "advertised.listeners"]);
        }
    });
}

#[test]
fn a_bootstrap_broker_that_cannot_be_reached_is_told_by_its_address() {
    runtime::block_on(2, async {
        let gone = loopback(testbed::ports::free());
        let unheard = HostPort { host: "no-such-host.invalid".to_owned(), port: 9092 };
        let (first, second) = (gone.to_string(), unheard.to_string());
        assert_all_say(&errors(vec![gone.clone()]).await, &[&first, "KAFKA_BOOTSTRAP_SERVERS"]);
        assert_all_say(&errors(vec![gone.clone(), unheard.clone()]).await, &[&first, &second, "resolve"]);
        let asked = partitions(&settings(vec![gone, unheard]), "topic").await.unwrap_err().to_string();
        assert_all_say(&[asked], &[&first, &second]);
    });
}

#[test]
fn a_port_of_tls_http_or_another_service_is_told_as_such() {
    runtime::block_on(2, async {
        let strangers: [(&'static [u8], &str); 7] = [
            // An alert: unexpected message, as OpenSSL and Java send it.
            (&[0x15, 3, 3, 0, 2, 2, 10], "speaks TLS"),
            (&[0x15, 3, 1, 0, 2, 2, 70], "speaks TLS"),
            (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "speaks HTTP"),
            // As a listener of Kafka with TLS does.
            (b"", "perhaps a listener with TLS"),
            (&[0, 0], "perhaps a listener with TLS"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "perhaps it is another service"),
            (&[0, 0, 0, 8, 0, 0, 0, 77, 0, 0, 0, 0], "perhaps it is another service"),
        ];
        for (says, words) in strangers {
            let (stranger, _task) = stranger(says).await;
            let address = stranger.to_string();
            assert_all_say(&errors(vec![stranger]).await, &[words, &address, "KAFKA_BOOTSTRAP_SERVERS"]);
        }
    });
}
