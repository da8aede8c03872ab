//! The reader of the services' stdout stalls.

use std::{
    io::Read as _,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use smol::{io::AsyncWriteExt as _, net::TcpStream};
use testbed::{audit::Acknowledged, service::Service, system::System, until};

use crate::support::{
    TIMEOUT, analytics, any_broker, audit, billing, metric, patients, register, system, until_metric,
};

/// Executes a service with its output in a pipe that is open for reading and never read.
const UNREAD: &str = r#"mkfifo "$0" && exec 3<>"$0" && exec "$1" >"$0" 2>&1"#;
/// Concurrent connections, each of which causes a log line.
const CONCURRENT: usize = 64;
/// Timeout of a request, and time for an idle service to stop.
const SHORT_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn a_stalled_reader_of_stdout_loses_lines_and_blocks_no_service() {
    runtime::block_on(2, async {
        let mut system = system(any_broker(), 1, &[("LOG_LEVEL", "debug")]).await;
        let which: [fn(&mut System) -> &mut Service; 3] = [patients, billing, analytics];
        let mut pipes = Vec::new();
        for which in which {
            let pipe = system.directory().join(format!("pipe-{}", pipes.len()));
            let path = pipe.to_str().unwrap().to_owned();
            system.restart_with(which, |launch| launch.start_with_wrapper(&["sh", "-c", UNREAD, &path])).await.unwrap();
            which(&mut system).until_ready().await.unwrap();
            pipes.push(pipe);
        }
        for which in which {
            let service = which(&mut system);
            log_until_dropped(service).await;
            let client = service.client().with_timeout(SHORT_TIMEOUT);
            assert_eq!(client.get("/actuator/health/liveness").await.unwrap().status, 200);
        }
        let acknowledged = Acknowledged::default();
        let client = system.patient_client().with_timeout(SHORT_TIMEOUT);
        for _ in 0..20 {
            register(&client, &acknowledged).await;
        }
        audit(&system, &acknowledged).await;

        for (which, pipe) in which.into_iter().zip(pipes) {
            let service = which(&mut system);
            let dropped = metric(service, "log_lines_dropped_total").await.unwrap();
            let lines = read(pipe);
            let line = next(&lines, "log lines were dropped, because nobody read stdout");
            assert!(line["lines"].as_f64().unwrap() >= dropped, "{line}, and {dropped} by the metric");
            assert!(service.process().stop(TIMEOUT).await.success());
            next(&lines, "stopped");
        }
    });
}

#[test]
fn a_service_stops_while_the_reader_of_stdout_stalls() {
    runtime::block_on(2, async {
        let mut system = system(any_broker(), 1, &[("LOG_LEVEL", "debug")]).await;
        let pipe = system.directory().join("pipe").to_str().unwrap().to_owned();
        system.restart_with(billing, |launch| launch.start_with_wrapper(&["sh", "-c", UNREAD, &pipe])).await.unwrap();
        system.billing.until_ready().await.unwrap();
        log_until_dropped(&mut system.billing).await;
        let started = Instant::now();
        assert!(system.billing.process().stop(TIMEOUT).await.success());
        assert!(started.elapsed() < SHORT_TIMEOUT * 2, "{:?}", started.elapsed());
    });
}

/// Makes a service log until lines are dropped.
async fn log_until_dropped(service: &mut Service) {
    let address = service.address();
    until("lines are dropped", async || {
        let malformed = (0..CONCURRENT).map(|_| {
            let address = address.clone();
            runtime::spawn(async move {
                // The service responds and closes the connection, or closes it; both cause a log line.
                let send = async {
                    let mut stream = TcpStream::connect(&address).await?;
                    stream.write_all(&[b'x'; 400]).await?;
                    stream.write_all(b"\r\n\r\n").await?;
                    smol::io::AsyncReadExt::read(&mut stream, &mut [0; 64]).await
                };
                runtime::timeout(TIMEOUT, send).await.expect("the service is not blocked")
            })
        });
        for task in malformed.collect::<Vec<_>>() {
            // Whether there was a response does not matter.
            let _ = task.await;
        }
        metric(service, "log_lines_dropped_total").await.is_some_and(|count| count > 0.0)
    })
    .await;
    until_metric(service, "log_lines_dropped_total", |count| count > 0.0).await;
}

/// Reads a pipe on a thread that ends with the last writer or with the test.
fn read(pipe: PathBuf) -> mpsc::Receiver<Json> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut pipe = std::fs::File::open(pipe).unwrap();
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            text.extend(&buffer[..count]);
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
