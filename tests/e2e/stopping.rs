//! SIGTERM, and SIGTERM again.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use testbed::{Signal, broker::Kind, service::STOP_LIMIT};

use crate::{
    own::system,
    support::{patient, register},
};

testbed::on_each_broker!(
    requests_in_flight_are_answered_and_every_service_ends_in_order,
    a_second_signal_ends_it_at_once
);

fn requests_in_flight_are_answered_and_every_service_ends_in_order(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, &[]).await;
        let client = system.patient_client();
        register(&client, "Jane Doe").await;
        // Heads are there, bodies are not until the service is told to stop.
        let body = |n: usize| patient(&format!("Patient {n}")).to_string();
        let mut streams = Vec::new();
        for n in 0..100 {
            let mut stream = TcpStream::connect(system.patients[0].address()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let length = body(n).len();
            write!(stream, "POST /patients HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n").unwrap();
            streams.push(stream);
        }
        // The service has all of them once it has asked for their bodies.
        streams.iter_mut().for_each(until_asked_for_the_body);
        system.patients[0].process().signal(Signal::TERM);
        let sent: Vec<usize> =
            streams.iter_mut().enumerate().map(|(n, stream)| stream.write(body(n).as_bytes()).unwrap()).collect();
        assert!(sent.iter().enumerate().all(|(n, length)| *length == body(n).len()));
        let answers = smol::unblock(move || {
            streams
                .into_iter()
                .map(|mut stream| {
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).map(|_| answer)
                })
                .collect::<Vec<_>>()
        })
        .await;
        for answer in answers {
            assert!(answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 201")), "{answer:?}");
        }
        let ended = system.patients[0].process().wait(STOP_LIMIT).await;
        assert!(ended.is_some_and(|ended| ended.in_order()), "{ended:?}");

        for service in [&mut system.billing, &mut system.analytics] {
            let started = Instant::now();
            let ended = service.stop().await;
            assert!(ended.in_order() && started.elapsed() < Duration::from_secs(15), "{ended:?}");
        }
        // What was stored is published by the next start, and counted.
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

fn a_second_signal_ends_it_at_once(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, &[]).await;
        let service = &mut system.patients[0];
        let mut hanging = TcpStream::connect(service.address()).unwrap();
        write!(
            hanging,
            "POST /patients HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
        )
        .unwrap();
        until_asked_for_the_body(&mut hanging);
        service.process().signal(Signal::TERM);
        assert_eq!(service.process().wait(Duration::from_millis(300)).await, None, "it waits for the request");
        let started = Instant::now();
        service.process().signal(Signal::TERM);
        let ended = service.process().wait(Duration::from_secs(5)).await;
        assert!(
            ended.is_some_and(|ended| !ended.in_order()) && started.elapsed() < Duration::from_secs(1),
            "{ended:?}"
        );
    });
}

/// Waits for the answer to a head that expects it: the service reads the request, whose body is not there.
fn until_asked_for_the_body(stream: &mut TcpStream) {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = [0; CONTINUE.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, CONTINUE);
}
