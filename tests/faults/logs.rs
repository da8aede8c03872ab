//! A reader of the services' stdout that stalls.

use std::{
    io::Read as _,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use smol::{io::AsyncWriteExt as _, net::TcpStream};
use testbed::{audit::Acknowledged, service::Service, system::System};

use crate::support::{
    TIMEOUT, analytics, audit, billing, metric, patients, register, some_broker, system, until, until_metric,
};

/// Becomes a service whose output goes to a pipe that is open for reading, too, and that nobody reads.
const UNREAD: &str = r#"mkfifo "$0" && exec 3<>"$0" && exec "$1" >"$0" 2>&1"#;
/// Connections that are made at once, each of which leaves a line.
const AT_ONCE: usize = 64;
/// Time for one answer, and for the end of a service that has nothing to do.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn that_stalls_costs_lines_and_holds_no_service_up() {
    runtime::block_on(2, async {
        let mut system = system(some_broker(), 1, &[("LOG_LEVEL", "debug")]).await;
        let which: [fn(&mut System) -> &mut Service; 3] = [patients, billing, analytics];
        let mut pipes = Vec::new();
        for which in which {
            let pipe = system.directory().join(format!("pipe-{}", pipes.len()));
            let path = pipe.to_str().unwrap().to_owned();
            system.relaunch(which, |launch| launch.start_by(&["sh", "-c", UNREAD, &path])).await.unwrap();
            which(&mut system).until_ready().await.unwrap();
            pipes.push(pipe);
        }
        for which in which {
            let service = which(&mut system);
            fill(service).await;
            let client = service.client().with_limit(SOON);
            assert_eq!(client.get("/actuator/health/liveness").await.unwrap().status, 200);
        }
        let acknowledged = Acknowledged::default();
        let client = system.patient_client().with_limit(SOON);
        for _ in 0..20 {
            register(&client, &acknowledged).await;
        }
        audit(&system, &acknowledged).await;

        for (which, pipe) in which.into_iter().zip(pipes) {
            let service = which(&mut system);
            let dropped = metric(service, "log_lines_dropped_total").await.unwrap();
            let lines = read(pipe);
            let told = next(&lines, "log lines were dropped, because nobody read stdout");
            assert!(told["lines"].as_f64().unwrap() >= dropped, "{told}, and {dropped} by the metric");
            assert!(service.process().stop(TIMEOUT).await.in_order());
            next(&lines, "stopped");
        }
    });
}

#[test]
fn that_stalls_does_not_keep_a_service_from_ending() {
    runtime::block_on(2, async {
        let mut system = system(some_broker(), 1, &[("LOG_LEVEL", "debug")]).await;
        let pipe = system.directory().join("pipe").to_str().unwrap().to_owned();
        system.relaunch(billing, |launch| launch.start_by(&["sh", "-c", UNREAD, &pipe])).await.unwrap();
        system.billing.until_ready().await.unwrap();
        fill(&mut system.billing).await;
        let started = Instant::now();
        assert!(system.billing.process().stop(TIMEOUT).await.in_order());
        assert!(started.elapsed() < SOON * 2, "{:?}", started.elapsed());
    });
}

/// Has a service log until lines are dropped.
async fn fill(service: &mut Service) {
    let address = service.address();
    until("lines are dropped", async || {
        let nonsense = (0..AT_ONCE).map(|_| {
            let address = address.clone();
            runtime::spawn(async move {
                // It is answered and closed, or closed; either leaves a line.
                let speak = async {
                    let mut stream = TcpStream::connect(&address).await?;
                    stream.write_all(&[b'x'; 400]).await?;
                    stream.write_all(b"\r\n\r\n").await?;
                    smol::io::AsyncReadExt::read(&mut stream, &mut [0; 64]).await
                };
                runtime::timeout(TIMEOUT, speak).await.expect("the service goes on")
            })
        });
        for task in nonsense.collect::<Vec<_>>() {
            // Whether it was answered or closed does not matter.
            let _ = task.await;
        }
        metric(service, "log_lines_dropped_total").await.is_some_and(|count| count > 0.0)
    })
    .await;
    until_metric(service, "log_lines_dropped_total", |count| count > 0.0).await;
}

/// Reads what is in a pipe and what comes, on a thread that ends with the last writer or with the test.
fn read(pipe: PathBuf) -> mpsc::Receiver<Json> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut pipe = std::fs::File::open(pipe).unwrap();
        let (mut text, mut part) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = pipe.read(&mut part) {
            text.extend(&part[..count]);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let line = serde_json::from_slice(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
                if sender.send(line).is_err() {
                    return;
                }
            }
        }
    });
    lines
}

/// The next line with this message.
fn next(lines: &mpsc::Receiver<Json>, message: &str) -> Json {
    loop {
        let line = lines.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("it is not logged: {message}"));
        if line["message"] == message {
            return line;
        }
    }
}
