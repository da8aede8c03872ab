//! What HTTP shows.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    time::Duration,
};

use codec::event::Kind::{Created, Deleted, Updated};
use serde_json::{Value as Json, json};
use testbed::broker;
use uuid::Uuid;

use crate::harness::{record, with_topic};

testbed::on_each_broker!(registrations_are_a_series, the_stream_tells_changes);

fn registrations_are_a_series(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let one = Uuid::now_v7();
        topic.publish(&[(one, Created, 1), (Uuid::now_v7(), Created, 1), (one, Deleted, 2)]).await;
        let service = topic.start(&[]).await;
        service.until_applied(3).await;
        for (query, series) in [
            ("", json!([{"period": "2024-02", "registrations": 2}])),
            ("?interval=day", json!([{"period": "2024-02-29", "registrations": 2}])),
            ("?interval=year&from=2024-01-01&to=2024-12-31", json!([{"period": "2024", "registrations": 2}])),
            ("?from=2024-03-01", json!([])),
        ] {
            assert_eq!(service.get(&format!("/analytics/registrations{query}")).await.json(), series, "{query}");
        }
        let wrong = service.get("/analytics/registrations?interval=week&from=soon").await;
        assert_eq!(wrong.status, 400);
        assert_eq!(wrong.json()["errors"].as_object().unwrap().len(), 2);
        assert_eq!(service.get("/analytics/nothing").await.status, 404);
        service.stop().await;
    });
}

fn the_stream_tells_changes(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let service = topic.start(&[]).await;
        let patient = Uuid::now_v7();
        topic.publish(&[(patient, Created, 1)]).await;
        service.until_applied(1).await;

        let address = service.client.base().trim_start_matches("http://").to_owned();
        let (lines, received) = smol::channel::unbounded();
        let reading = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            write!(stream, "GET /analytics/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                if lines.send_blocking(line).is_err() {
                    return;
                }
            }
        });
        let next = async || loop {
            if let Some(data) = received.recv().await.unwrap().strip_prefix("data: ") {
                return serde_json::from_str::<Json>(data).unwrap();
            }
        };
        assert_eq!(next().await["activePatients"], 1);
        let partition = codec::partition::of_hash(codec::partition::key_hash(patient.to_string().as_bytes()), 3);
        topic.send(partition, vec![record(patient, Updated, 2), record(patient, Deleted, 3)]).await;
        while next().await["deleted"] != 1 {}
        // A stream ends with its service.
        service.stop().await;
        drop(received);
        reading.join().unwrap();
    });
}
