//! SIGTERM, and a second SIGTERM.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use testbed::{Signal, broker::Kind, service::STOP_TIMEOUT};

use crate::{
    fresh_system::system,
    support::{patient, register},
};

testbed::on_each_broker!(
    requests_in_flight_are_answered_and_every_service_stops_cleanly,
    a_second_signal_stops_a_service_at_once
);

fn requests_in_flight_are_answered_and_every_service_stops_cleanly(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, &[]).await;
        let client = system.patient_client();
        register(&client, "Jane Doe").await;
        // The heads are sent now, the bodies only after SIGTERM.
        let body = |n: usize| patient(&format!("Patient {n}")).to_string();
        let mut streams = Vec::new();
        for n in 0..100 {
            let mut stream = TcpStream::connect(system.patients[0].address()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let length = body(n).len();
            write!(stream, "POST /patients HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n").unwrap();
            streams.push(stream);
        }
        // Once the service has sent 100 Continue, it has read the head.
        streams.iter_mut().for_each(read_continue);
        system.patients[0].process().signal(Signal::TERM);
        let sent: Vec<usize> =
            streams.iter_mut().enumerate().map(|(n, stream)| stream.write(body(n).as_bytes()).unwrap()).collect();
        assert!(sent.iter().enumerate().all(|(n, length)| *length == body(n).len()));
        let responses = smol::unblock(move || {
            streams
                .into_iter()
                .map(|mut stream| {
                    let mut response = String::new();
                    stream.read_to_string(&mut response).map(|_| response)
                })
                .collect::<Vec<_>>()
        })
        .await;
        for response in responses {
            assert!(response.as_ref().is_ok_and(|response| response.starts_with("HTTP/1.1 201")), "{response:?}");
        }
        let ended = system.patients[0].process().wait(STOP_TIMEOUT).await;
        assert!(ended.is_some_and(|ended| ended.success()), "{ended:?}");

        for service in [&mut system.billing, &mut system.analytics] {
            let started = Instant::now();
            let ended = service.stop().await;
            assert!(ended.success() && started.elapsed() < Duration::from_secs(15), "{ended:?}");
        }
        // The events in the outbox are published after the next start, and counted.
        let mut services = system;
        services.patients[0].restart().unwrap();
        services.billing.restart().unwrap();
        services.analytics.restart().unwrap();
        for service in services.services() {
            service.until_ready().await.unwrap();
        }
        let summary =
            services.until_summary(Duration::from_secs(30), |summary| summary["created"] == 101).await.unwrap();
        assert_eq!(summary["activePatients"], 101);
        for service in services.services() {
            service.stop().await;
        }
    });
}

fn a_second_signal_stops_a_service_at_once(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, &[]).await;
        let service = &mut system.patients[0];
        let mut hanging = TcpStream::connect(service.address()).unwrap();
        write!(
            hanging,
            "POST /patients HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
        )
        .unwrap();
        read_continue(&mut hanging);
        service.process().signal(Signal::TERM);
        assert_eq!(service.process().wait(Duration::from_millis(300)).await, None, "it waits for the request");
        let started = Instant::now();
        service.process().signal(Signal::TERM);
        let ended = service.process().wait(Duration::from_secs(5)).await;
        assert!(ended.is_some_and(|ended| !ended.success()) && started.elapsed() < Duration::from_secs(5), "{ended:?}");
    });
}

/// Reads `100 Continue`: the service has read the head and waits for the body.
fn read_continue(stream: &mut TcpStream) {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut response = [0; CONTINUE.len()];
    stream.read_exact(&mut response).unwrap();
    assert_eq!(response, CONTINUE);
}
