//! Clients that keep connections open, send too much, or never read.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testbed::{
    audit::Acknowledged,
    http::Client,
    http2::{self, END_HEADERS, HEADERS},
    service::Service,
    sql,
    system::System,
    until,
};

use crate::support::{analytics, any_broker, billing, id, metric, patient, patients, register, system};

/// The memory limit of a service in docker-compose.yaml.
const ALL_MEMORY: u64 = 64 << 20;
/// The memory that a service may keep after many clients have disconnected, because the allocator cannot return fragmented
/// pages: after incomplete heads, and after incomplete bodies, which also use hyper's buffers.
const MAX_KEPT_MEMORY: (u64, u64) = (10 << 20, 28 << 20);
/// Connections of a client.
const CONNECTIONS: usize = 2_000;
/// Memory for these connections: a few kilobytes each.
const MEMORY: u64 = 48 << 20;

/// Raises the limit of file descriptors to its maximum, for us and for the services, which inherit it.
fn allow_all_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

#[test]
fn two_thousand_waiting_connections_cost_little_and_block_no_other_client() {
    allow_all_descriptors();
    runtime::block_on(2, async {
        let mut system = system(any_broker(), 1, &[]).await;
        let client = system.patient_client();
        register(&client, &Acknowledged::default()).await;
        let before = times(&client).await;
        let (memory, descriptors) = usage(patients(&mut system));
        // Nothing, an incomplete head, or an incomplete body.
        let starts = [
            "",
            "GET /patients HTTP/1.1\r\nhost: ",
            "POST /patients HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
        ];
        let address = system.patients[0].address();
        let held: Vec<TcpStream> = smol::unblock(move || {
            let connect = |n: usize| {
                let mut stream = TcpStream::connect(&address).unwrap();
                // Fewer bodies than the maximum of requests in flight.
                let start = if n % 8 == 2 { starts[2] } else { starts[n % 2] };
                stream.write_all(start.as_bytes()).unwrap();
                stream
            };
            (0..CONNECTIONS).map(connect).collect()
        })
        .await;
        until("it has accepted them", async || usage(patients(&mut system)).1 >= descriptors + CONNECTIONS).await;
        let during = times(&client).await;
        let (memory_during, descriptors_during) = usage(patients(&mut system));
        assert!(memory_during < memory + MEMORY, "{} KiB more", (memory_during - memory) / 1024);
        assert!(descriptors_during < descriptors + CONNECTIONS + 100, "{descriptors_during}");
        assert!(during < before * 3 + Duration::from_millis(5), "{during:?}, {before:?} before");
        drop(held);
        until("it has closed them", async || usage(patients(&mut system)).1 < descriptors + 100).await;
    });
}

/// Heads without their last line, and bodies without their last bytes, on every HTTP server: together they use a bounded amount
/// of memory, which is free again after the clients have disconnected.
#[test]
fn incomplete_requests_cost_bounded_memory_and_block_no_other_client() {
    allow_all_descriptors();
    runtime::block_on(2, async {
        let mut system = system(any_broker(), 1, &[]).await;
        let client = system.patient_client();
        register(&client, &Acknowledged::default()).await;
        let head = format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\nlarge: {}", "x".repeat(31_000));
        let body = format!(
            "POST /patients HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n{{{}",
            " ".repeat(59_000)
        );
        let services = [
            ("patient-service", patients as fn(&mut System) -> &mut Service),
            ("billing-service", billing),
            ("analytics-service", analytics),
        ];
        for (name, pick) in services {
            let address = pick(&mut system).address();
            let health = Client::new(&address);
            let (memory, descriptors) = usage(pick(&mut system));
            // Only patient-service reads bodies; the others respond 404 at once.
            for (count, start) in [(600, &head), (3_000, &head), (600, &body), (3_000, &body)] {
                let mut held = Vec::new();
                for _ in 0..count / 100 {
                    let (address, start) = (address.clone(), start.clone());
                    let connect = move |_| {
                        let mut stream = TcpStream::connect(&address).unwrap();
                        // The server may have closed the connection already.
                        let _ = stream.write_all(start.as_bytes());
                        stream
                    };
                    held.extend(smol::unblock(move || (0..100).map(connect).collect::<Vec<_>>()).await);
                    assert_eq!(health.get("/actuator/health/liveness").await.unwrap().status, 200);
                    if name == "patient-service" {
                        assert_eq!(client.get("/patients?limit=1").await.unwrap().status, 200);
                    }
                }
                drop(held);
                until("it has closed them", async || usage(pick(&mut system)).1 < descriptors + 50).await;
                let kept = if *start == head { MAX_KEPT_MEMORY.0 } else { MAX_KEPT_MEMORY.1 };
                until("it has freed their memory", async || usage(pick(&mut system)).0 < memory + kept).await;
            }
            let most = pick(&mut system).process().peak_memory();
            assert!(most < ALL_MEMORY, "{name}: {} KiB", most >> 10);
        }
        register(&client, &Acknowledged::default()).await;
    });
}

/// Connections to billing-service that send an incomplete frame, head or preface.
const GRPC_CONNECTIONS: usize = 6_000;
/// A ledger for each account.
const LEDGER: &str = "INSERT INTO transactions (patient_id, transaction_id, type, amount, currency)
    SELECT patient_id, 't-' || n, 'CHARGE', 1, 'EUR' FROM accounts, generate_series(1, 30000) AS n";

/// Lists whose readers have taken nothing and that were ended for it.
async fn broken_off(billing: &Service) -> f64 {
    let calls = r#"grpc_server_calls_total{code="cancelled",method="BillingService/ListTransactions"}"#;
    metric(billing, calls).await.unwrap_or(0.0)
}

#[test]
fn slow_grpc_clients_cost_bounded_memory_and_block_no_other_client() {
    allow_all_descriptors();
    runtime::block_on(2, async {
        let mut system = system(any_broker(), 1, &[]).await;
        let client = system.patient_client();
        let jane = register(&client, &Acknowledged::default()).await;
        let ledger = format!("/patients/{}/billing/transactions?limit=1", id(&jane));
        sql::execute(&system.backing_services().billing_database.clone(), LEDGER).await.unwrap();
        let address = ([127, 0, 0, 1], system.billing.setting("GRPC_SERVER_PORT").unwrap().parse().unwrap()).into();
        let begun = async || http2::Connection::open_with_window(address, i32::MAX as u32).await.unwrap();
        // Without a maximum, the connections would take more than ALL_MEMORY, and so would the requests. Writing to a connection
        // that the service has closed fails.
        let mut held = Vec::new();
        for kind in 0..GRPC_CONNECTIONS {
            let mut connection = begun().await;
            let _ = match kind % 3 {
                // An incomplete frame of the maximum size.
                0 => connection.send(&[&[0, 0x40, 0, HEADERS, 0, 0, 0, 0, 1][..], &[0; 16_000]].concat()).await,
                // A header block without END_HEADERS.
                1 => {
                    let long = "a".repeat(7_000);
                    connection
                        .frame(HEADERS, 0, 1, &http2::head("/BillingService/GetBillingAccount", &[("a", &long)]))
                        .await
                }
                _ => connection.send(&http2::PREFACE[..3]).await,
            };
            held.push(connection);
        }
        println!("{} KiB with connections", billing(&mut system).process().memory() / 1024);
        assert_eq!(client.get(&ledger).await.unwrap().status, 200);
        for _ in 0..60 {
            let mut connection = begun().await;
            for call in 0..250 {
                let head = http2::head("/BillingService/GetBillingAccount", &[("a", &"a".repeat(7_000))]);
                let _ = connection.frame(HEADERS, END_HEADERS, 2 * call + 1, &head).await;
            }
            held.push(connection);
        }
        println!("{} KiB with requests", billing(&mut system).process().memory() / 1024);
        // The heads that have arrived come first.
        until("others are answered after the heads", async || client.get(&ledger).await.unwrap().status == 200).await;
        let request = [&[0x0a, 36], id(&jane).to_string().as_bytes()].concat();
        let list = async || {
            let mut connection = begun().await;
            let _ = connection.increase_window(0, i32::MAX as u32 - 65_535).await;
            for call in 0..20 {
                let _ = connection.call(2 * call + 1, "/BillingService/ListTransactions", &[], &request).await;
            }
            connection
        };
        for _ in 0..20 {
            held.push(list().await);
        }
        // A busy database fails some of these calls, and more are made until enough answers had to make room for others.
        let mut rounds = 0;
        while broken_off(&system.billing).await < 200.0 {
            assert!(rounds < 60, "{} answers were broken off", broken_off(&system.billing).await);
            rounds += 1;
            held.push(list().await);
            until("others are answered", async || client.get(&ledger).await.unwrap().status == 200).await;
        }
        println!("{} KiB with answers", billing(&mut system).process().memory() / 1024);
        // One core may be too busy for the deadline until the kernel has buffered the responses of the others.
        until("other clients get responses", async || client.get(&ledger).await.unwrap().status == 200).await;
        let most = billing(&mut system).process().peak_memory();
        assert!(most < ALL_MEMORY, "{} KiB", most / 1024);
        drop(held);
        assert_eq!(client.get(&ledger).await.unwrap().status, 200);
    });
}

#[test]
fn endless_bodies_cost_no_memory() {
    runtime::block_on(2, async {
        let mut system = system(any_broker(), 1, &[]).await;
        register(&system.patient_client(), &Acknowledged::default()).await;
        let (memory, _) = usage(patients(&mut system));
        let address = system.patients[0].address();
        let sending: Vec<_> = (0..20)
            .map(|n| {
                let address = address.clone();
                smol::unblock(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    let length = if n % 2 == 0 { "content-length: 100000000" } else { "transfer-encoding: chunked" };
                    let head = format!(
                        "POST /patients HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
                    );
                    stream.write_all(head.as_bytes()).unwrap();
                    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
                    // 64 MiB, or until the connection is closed.
                    let sent = (0..1024).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count();
                    let mut response = [0; 12];
                    let answered = stream.read_exact(&mut response).is_ok();
                    (sent, answered.then(|| String::from_utf8_lossy(&response).into_owned()))
                })
            })
            .collect();
        for sent in sending {
            let (chunks, response) = sent.await;
            assert!(chunks < 1024, "it read all of it");
            // A client that keeps sending may lose the response, because a reset follows it.
            assert!(response.as_deref().is_none_or(|response| response == "HTTP/1.1 413"), "{response:?}");
        }
        let (after, _) = usage(patients(&mut system));
        assert!(after < memory + (16 << 20), "{} KiB more", (after - memory) / 1024);
        let started = Instant::now();
        assert_eq!(system.patient_client().post("/patients", &patient()).await.unwrap().status, 201);
        assert!(started.elapsed() < Duration::from_secs(5));
    });
}

/// Memory and open descriptors of a service.
fn usage(service: &mut Service) -> (u64, usize) {
    let process = service.process();
    (process.memory(), process.open_descriptors())
}

/// The median time of a read.
async fn times(client: &Client) -> Duration {
    let mut times = Vec::new();
    for _ in 0..101 {
        let started = Instant::now();
        assert_eq!(client.get("/patients?limit=1").await.unwrap().status, 200);
        times.push(started.elapsed());
    }
    times.sort();
    times[50]
}
