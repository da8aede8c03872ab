//! The stream of summaries: over sockets, and through nginx.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use codec::event::EventKind::{Created, Deleted, Updated};
use kafka::partitioner::{key_hash, of_hash};
use runtime::timeout;
use serde_json::Value as Json;
use smol::channel::{self, Receiver};
use testbed::{Process, Scratch, broker, ports};
use uuid::Uuid;

use crate::harness::{PARTITIONS, Running, record, with_topic};

testbed::on_each_broker!(
    the_stream_sends_changes,
    a_disconnected_client_of_the_stream_is_noticed_at_once,
    an_http_1_0_client_of_the_stream_gets_events_without_chunks,
    through_nginx_with_its_defaults_events_arrive_at_once,
);

/// How long a test waits for an event or a response: less than the keep-alive interval of the stream.
const TIMEOUT: Duration = Duration::from_secs(12);
/// More clients than the stream allows at once.
const CLIENTS: usize = 70;

fn address(service: &Running) -> String {
    service.client.base().trim_start_matches("http://").to_owned()
}

fn connect(address: &str, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// The lines of a reader. A thread reads until the end, or until the receiver is dropped.
fn lines(from: impl io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel::unbounded();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            if sender.send_blocking(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The next summary of a stream.
async fn next_summary(lines: &Receiver<String>) -> Json {
    let next = async {
        loop {
            let line = lines.recv().await.expect("the stream has ended");
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data).unwrap();
            }
        }
    };
    timeout(TIMEOUT, next).await.expect("no event arrives")
}

fn partition_of(patient: Uuid) -> i32 {
    of_hash(key_hash(patient.to_string().as_bytes()), PARTITIONS)
}

fn the_stream_sends_changes(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let service = topic.start(&[]).await;
        let patient = Uuid::now_v7();
        topic.publish(&[(patient, Created, 1)]).await;
        service.until_applied(1).await;
        let stream = connect(&address(&service), "GET /analytics/stream HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let lines = lines(stream);
        assert_eq!(next_summary(&lines).await["activePatients"], 1);
        topic.send(partition_of(patient), vec![record(patient, Updated, 2), record(patient, Deleted, 3)]).await;
        while next_summary(&lines).await["deleted"] != 1 {}
        // A stream ends with its service.
        service.stop().await;
        let ended = async { while lines.recv().await.is_ok() {} };
        timeout(TIMEOUT, ended).await.unwrap();
    });
}

fn a_disconnected_client_of_the_stream_is_noticed_at_once(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let service = topic.start(&[]).await;
        let address = address(&service);
        // Nothing changes, so nothing is sent to any client.
        let connect_and_disconnect = move || {
            for client in (0..CLIENTS).flat_map(|client| ["GET", "HEAD"].map(|method| (method, client))) {
                let (method, number) = client;
                let request = format!("{method} /analytics/stream HTTP/1.1\r\nhost: localhost\r\n\r\n");
                let mut head = [0; 15];
                connect(&address, &request).read_exact(&mut head).unwrap();
                assert_eq!(str::from_utf8(&head), Ok("HTTP/1.1 200 OK"), "client {number} with {method}");
            }
        };
        smol::unblock(connect_and_disconnect).await;
        service.stop().await;
    });
}

fn an_http_1_0_client_of_the_stream_gets_events_without_chunks(kind: broker::Kind) {
    with_topic(kind, |topic| async move {
        let service = topic.start(&[]).await;
        let lines = lines(connect(&address(&service), "GET /analytics/stream HTTP/1.0\r\n\r\n"));
        let first = async {
            let mut head = Vec::new();
            loop {
                match lines.recv().await.unwrap() {
                    line if line.is_empty() => return (head, lines.recv().await.unwrap()),
                    line => head.push(line.to_lowercase()),
                }
            }
        };
        let (head, first) = timeout(TIMEOUT, first).await.unwrap();
        assert!(head[0].ends_with(" 200 ok"), "{head:?}");
        assert!(head.contains(&"x-accel-buffering: no".to_owned()), "{head:?}");
        assert!(!head.iter().any(|line| line.starts_with("transfer-encoding")), "{head:?}");
        assert_eq!(first, "event: summary", "the body begins with an event");
        next_summary(&lines).await;
        service.stop().await;
    });
}

/// Whether nginx and curl are installed; prints that the test is skipped otherwise.
fn has_nginx_and_curl() -> bool {
    let is_there =
        |program: &&str| Command::new(program).arg("-V").stderr(Stdio::null()).stdout(Stdio::null()).status();
    match ["nginx", "curl"].into_iter().find(|program| is_there(program).is_err()) {
        None => true,
        Some(missing) => {
            // Not with eprintln, whose output is captured unless the test fails.
            let _ = writeln!(io::stderr(), "SKIPPED: the stream through nginx: {missing} is not installed");
            false
        }
    }
}

struct Nginx {
    process: Process,
    port: u16,
}

impl Nginx {
    /// nginx with its defaults as a reverse proxy; below `/gzip/` with compression.
    async fn start(scratch: &Scratch, upstream: &str) -> Self {
        let directory = scratch.path();
        let port = ports::free();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {}/{name};\n", directory.display()))
            .concat();
        let configuration = format!(
            "daemon off; pid {0}/nginx.pid; error_log {0}/error.log;
            events {{}}
            http {{
                access_log off;
                {temporary}
                server {{
                    listen 127.0.0.1:{port};
                    location / {{ proxy_pass http://{upstream}; }}
                    location /gzip/ {{ gzip on; gzip_types *; proxy_pass http://{upstream}/; }}
                }}
            }}",
            directory.display()
        );
        let file = directory.join("nginx.conf");
        fs::write(&file, configuration).unwrap();
        let arguments = ["-p".as_ref(), directory.as_os_str(), "-c".as_ref(), file.as_os_str()];
        let starting = Process::builder("nginx", "nginx", directory.join("nginx.log")).args(arguments);
        let mut process = starting.directory(directory).start().unwrap();
        scratch.guard(&process).unwrap();
        let listens = || async { smol::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() };
        process.until(Duration::from_secs(10), listens).await.unwrap();
        Self { process, port }
    }

    /// The lines of a response as curl receives and decompresses them.
    fn get(&self, path: &str) -> (Child, Receiver<String>) {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let mut curl = Command::new("curl")
            .args(["-sN", "--compressed", "--dump-header", "-", &url])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines(curl.stdout.take().unwrap());
        (curl, lines)
    }
}

fn through_nginx_with_its_defaults_events_arrive_at_once(kind: broker::Kind) {
    if !has_nginx_and_curl() {
        return;
    }
    with_topic(kind, |mut topic| async move {
        let service = topic.start(&[]).await;
        let mut nginx = Nginx::start(topic.scratch(), &address(&service)).await;
        let patient = Uuid::now_v7();
        for (path, is_compressed, kind, version) in
            [("/analytics/stream", false, Created, 1), ("/gzip/analytics/stream", true, Updated, 2)]
        {
            let (mut curl, lines) = nginx.get(path);
            let head = async {
                let mut head = Vec::new();
                loop {
                    match lines.recv().await.expect("nginx responds") {
                        line if line.is_empty() => return head,
                        line => head.push(line.to_lowercase()),
                    }
                }
            };
            let head = timeout(TIMEOUT, head).await.expect("a head arrives");
            assert_eq!(head.contains(&"content-encoding: gzip".to_owned()), is_compressed, "{head:?}");
            next_summary(&lines).await;
            topic.send(partition_of(patient), vec![record(patient, kind, version)]).await;
            let name = if version == 1 { "created" } else { "updated" };
            while next_summary(&lines).await[name] != 1 {}
            curl.kill().unwrap();
            curl.wait().unwrap();
        }
        nginx.process.stop(Duration::from_secs(5)).await;
        service.stop().await;
    });
}
