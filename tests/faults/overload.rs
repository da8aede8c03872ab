//! Four times as many requests as patient-service can handle.
//!
//! The clients are an open loop: requests begin at their rate whatever becomes of those before, and a latency counts
//! from when its request should have begun. They have half of the cores for themselves, the system has the others: real
//! clients pay for what they send, too. `OVERLOAD_SECONDS` sets how long it goes on (10).
//!
//! A test program of its own, because no other test may run beside it.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use runtime::{Shutdown, timeout};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use smol::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use testbed::{audit::Acknowledged, http::Client, system::System};
use uuid::Uuid;

#[allow(dead_code, reason = "it serves the other tests too")]
mod support;

use support::{audit, fast_broker, logged, register_many, system};

/// Clients whose closed loop finds the peak, for how long, and how often at most: until it is hardly faster than before. A
/// broker that was just started gets faster for many seconds, and four times too little is no overload.
const PEAK_CLIENTS: usize = 64;
const PEAK: Duration = Duration::from_secs(5);
const PEAK_LOOPS: usize = 6;
const HARDLY_FASTER: f64 = 1.1;
/// Offered, as a multiple of the peak.
const OVERLOAD: f64 = 4.0;
/// Connections of the open loop: those that wait for an answer, and enough for the others to be on time.
const CONNECTIONS: usize = 1024;
/// Time for one answer: longer than any deadline of the service.
const LIMIT: Duration = Duration::from_secs(15);

/// What is asked of the service.
struct Asked {
    /// The share of the offered requests that are sent: the others found every connection waiting for an answer.
    sent: f64,
    /// Refusals for each request that it accepts.
    refusals: f64,
    /// How often refusals may begin, by the log.
    beginnings: usize,
    /// The share of the peak that it still does.
    goodput: f64,
    /// The latency of what it accepts: of 99 in 100 (`DATABASE_ACQUIRE_DEADLINE`, `DATABASE_DEADLINE` and
    /// `BILLING_DEADLINE` bound the others), and of each.
    accepted: (Duration, Duration),
    /// The latency of its refusals: of half of them (at the limit), and of 99 in 100 (after `DATABASE_ACQUIRE_DEADLINE`).
    refused: (Duration, Duration),
    /// The slowest answer about its health.
    health: Duration,
    /// Bytes of memory; compose gives it as much.
    memory: u64,
    /// What may be added right after to the usual time of one request: in the middle, and to nine in ten.
    recovered: (Duration, Duration),
}

const OPTIMISED: Asked = Asked {
    sent: 0.99,
    refusals: 1.0,
    beginnings: 1,
    goodput: 0.8,
    accepted: (Duration::from_secs(2), Duration::from_secs(5)),
    refused: (Duration::from_millis(250), Duration::from_secs(2)),
    health: Duration::from_secs(2),
    memory: 64 << 20,
    recovered: (Duration::from_millis(5), Duration::from_millis(50)),
};

/// A build without optimisation has no time for as many refusals on a slow machine: its requests wait to be read, and with
/// every connection waiting, some are not sent. Its times tell of the build, not of the service. What is left to see is
/// that it works on, refuses, stays within its memory and recovers; a queue that grows leaves too few refused. Where it all
/// pauses, it may catch up and begin to refuse anew.
const UNOPTIMISED: Asked = Asked {
    sent: 0.6,
    refusals: 0.5,
    beginnings: 3,
    goodput: 0.5,
    accepted: (Duration::from_secs(8), Duration::from_secs(12)),
    refused: (Duration::from_secs(3), Duration::from_secs(8)),
    health: Duration::from_secs(5),
    memory: 96 << 20,
    recovered: (Duration::from_millis(250), Duration::from_secs(1)),
};

const ASKED: Asked = if cfg!(debug_assertions) { UNOPTIMISED } else { OPTIMISED };

#[test]
fn at_four_times_the_peak_it_does_its_work_and_refuses_the_rest() {
    let seconds = std::env::var("OVERLOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let length = Duration::from_secs(seconds);
    let cores = Cores::find();
    keep_to(&cores.system);
    runtime::block_on(2, async {
        let mut system = system(fast_broker(), 1, &[]).await;
        // What is started from here on is a client's.
        keep_to(&cores.clients);
        let acknowledged = Acknowledged::default();
        let address = system.patients[0].address();
        let load = |connections, rate, length| offer(address.clone(), connections, rate, length, acknowledged.clone());

        let usual = register_many(&system.patient_client(), &acknowledged, 50).await;
        let mut before = load(PEAK_CLIENTS, None, PEAK).await;
        for _ in 1..PEAK_LOOPS {
            let next = load(PEAK_CLIENTS, None, PEAK).await;
            let faster = next.goodput(PEAK) / before.goodput(PEAK);
            if faster > 1.0 {
                before = next;
            }
            if faster < HARDLY_FASTER {
                break;
            }
        }
        let peak = before.goodput(PEAK);
        let probe = Probe::start(&system);
        let offered = peak * OVERLOAD;
        let during = load(CONNECTIONS, Some(offered), length).await;
        let probed = probe.stop().await;
        let first = register_many(&system.patient_client(), &acknowledged, 20).await;
        let after = load(PEAK_CLIENTS, None, PEAK).await;

        let memory = system.patients[0].process().most_memory();
        let goodput = during.goodput(length);
        let back = after.goodput(PEAK);
        println!(
            "peak {peak:.0}/s before, {back:.0}/s after; offered {offered:.0}/s for {seconds} s: {goodput:.0}/s accepted \
             ({:.0} % of the peak; {} pending at billing), {} refused, {} never sent\n\
             accepted: {}; refused: {}; at the peak: {}\n\
             health: {} answers, the slowest after {:?}; memory at most {} KiB\n\
             one after the other: {} before, {} right after",
            goodput / peak * 100.0,
            during.pending,
            during.refused.len(),
            during.unsent,
            Percentiles(&during.accepted),
            Percentiles(&during.refused),
            Percentiles(&before.accepted),
            probed.answers,
            probed.slowest,
            memory >> 10,
            Percentiles(&usual),
            Percentiles(&first),
        );
        // It was offered what it should be, and the refusals are refusals.
        let unsent = during.unsent as f64 / (offered * length.as_secs_f64());
        assert!(unsent <= 1.0 - ASKED.sent, "{} were never sent", during.unsent);
        assert!(during.wrong.is_empty(), "{:?}", &during.wrong[..during.wrong.len().min(10)]);
        let refusals = during.refused.len() as f64 / during.accepted.len() as f64;
        assert!(refusals > ASKED.refusals, "it was not overloaded: {refusals:.2} refusals for each that it accepted");
        // It does its work, in time, within its memory, and says so.
        assert!(goodput >= peak.min(back) * ASKED.goodput, "{goodput:.0}/s of {peak:.0}/s and {back:.0}/s");
        assert!(at(&during.accepted, 0.99) < ASKED.accepted.0 && at(&during.accepted, 1.0) < ASKED.accepted.1);
        assert!(at(&during.refused, 0.5) < ASKED.refused.0 && at(&during.refused, 0.99) < ASKED.refused.1);
        assert!(memory < ASKED.memory, "{} KiB", memory >> 10);
        assert!(probed.wrong.is_empty(), "{:?}", probed.wrong);
        assert!(probed.slowest < ASKED.health, "{:?}", probed.slowest);
        let begun = logged(&system.patients[0], "too many requests in flight; more are rejected");
        let ended = logged(&system.patients[0], "requests are accepted again");
        assert!((1..=ASKED.beginnings).contains(&begun), "logged {begun} times");
        assert_eq!(begun, ended, "its end is logged, too");
        assert_eq!(logged(&system.patients[0], "the database is unavailable"), 0, "it was busy");
        // Afterwards it is as it was: the first requests succeed, as fast as ever.
        assert!(at(&first, 0.5) < at(&usual, 0.5) * 3 + ASKED.recovered.0);
        assert!(at(&first, 0.9) < at(&usual, 1.0) + ASKED.recovered.1);
        audit(&system, &acknowledged).await;
    });
}

/// The cores that each side has.
struct Cores {
    system: CpuSet,
    clients: CpuSet,
}

impl Cores {
    /// Half of the cores for each; both have the only one if there is one.
    fn find() -> Self {
        let all = sched_getaffinity(None).unwrap();
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).collect();
        let (mut system, mut clients) = (CpuSet::new(), CpuSet::new());
        let half = cores.len().div_ceil(2);
        cores[..half].iter().for_each(|core| system.set(*core));
        cores[cores.len() - half..].iter().for_each(|core| clients.set(*core));
        Self { system, clients }
    }
}

/// Keeps every thread of this process, and what they start from now on, to these cores.
fn keep_to(cores: &CpuSet) {
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let id = thread.unwrap().file_name().to_str().unwrap().parse().unwrap();
        // A thread may end meanwhile.
        let _ = sched_setaffinity(Pid::from_raw(id), cores);
    }
}

/// What clients have seen.
#[derive(Debug, Default)]
struct Seen {
    /// Latencies of what was done, and of 503 with `Retry-After`, the shortest first.
    accepted: Vec<Duration>,
    refused: Vec<Duration>,
    /// Everything else.
    wrong: Vec<String>,
    /// Requests that should have begun, for which no connection was free.
    unsent: u64,
    /// Of those that were done: patients whose account billing had not opened in time.
    pending: usize,
}

impl Seen {
    fn goodput(&self, length: Duration) -> f64 {
        self.accepted.len() as f64 / length.as_secs_f64()
    }
}

/// A quantile of times, of which the shortest is the first.
fn at(times: &[Duration], quantile: f64) -> Duration {
    let index = (times.len() as f64 * quantile) as usize;
    times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

struct Percentiles<'a>(&'a [Duration]);

impl std::fmt::Display for Percentiles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.1?}, p99 {:.1?}, most {:.1?}", at(self.0, 0.5), at(self.0, 0.99), at(self.0, 1.0))
    }
}

/// Registers patients for so long: at this rate, or without one each client as fast as it is answered.
async fn offer(
    address: String,
    connections: usize,
    rate: Option<f64>,
    length: Duration,
    acknowledged: Acknowledged,
) -> Seen {
    let begin = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..connections)
        .map(|_| {
            let (address, next, acknowledged) = (address.clone(), next.clone(), acknowledged.clone());
            runtime::spawn(async move {
                let (mut connection, mut seen) = (Connection { address, stream: None }, Seen::default());
                loop {
                    let intended = match rate {
                        Some(rate) => {
                            begin + Duration::from_secs_f64(next.fetch_add(1, Ordering::Relaxed) as f64 / rate)
                        }
                        None => Instant::now(),
                    };
                    if intended >= begin + length {
                        return seen;
                    }
                    if Instant::now() >= begin + length {
                        seen.unsent += 1;
                        continue;
                    }
                    smol::Timer::at(intended).await;
                    match connection.register().await {
                        Ok(Outcome::Stored { id, pending }) => {
                            seen.pending += usize::from(pending);
                            acknowledged.stored(id, 1);
                            seen.accepted.push(intended.elapsed());
                        }
                        Ok(Outcome::Refused) => seen.refused.push(intended.elapsed()),
                        Ok(Outcome::Other(answer)) => seen.wrong.push(answer),
                        Err(error) => {
                            connection.stream = None;
                            seen.wrong.push(error.to_string());
                        }
                    }
                }
            })
        })
        .collect();
    let mut all = Seen::default();
    for client in clients {
        let seen = client.await;
        all.accepted.extend(seen.accepted);
        all.refused.extend(seen.refused);
        all.wrong.extend(seen.wrong);
        all.unsent += seen.unsent;
        all.pending += seen.pending;
    }
    all.accepted.sort();
    all.refused.sort();
    all
}

enum Outcome {
    Stored {
        id: Uuid,
        pending: bool,
    },
    /// 503 with `Retry-After`.
    Refused,
    Other(String),
}

/// A connection that knows no more of HTTP than it needs: the generator shares the cores with what it measures.
struct Connection {
    address: String,
    stream: Option<TcpStream>,
}

impl Connection {
    async fn register(&mut self) -> io::Result<Outcome> {
        let body = format!(
            r#"{{"name":"Jane Doe","email":"{}@example.org","address":"1 Main Street","dateOfBirth":"1990-12-31"}}"#,
            Uuid::now_v7()
        );
        let request = format!(
            "POST /patients HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = timeout(LIMIT, self.send(request.as_bytes())).await.map_err(io::Error::other)?;
        let answer = answer?;
        Ok(match answer.get(9..12) {
            Some("201") => {
                let id = answer.split_once("\"id\":\"").and_then(|(_, rest)| rest.get(..36)?.parse().ok());
                let pending = answer.contains("PENDING");
                id.map_or_else(|| Outcome::Other(answer.clone()), |id| Outcome::Stored { id, pending })
            }
            Some("503") if answer.contains("\r\nretry-after: ") => Outcome::Refused,
            _ => Outcome::Other(answer),
        })
    }

    async fn send(&mut self, request: &[u8]) -> io::Result<String> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(&self.address).await?;
                stream.set_nodelay(true)?;
                none.insert(stream)
            }
        };
        stream.write_all(request).await?;
        let mut answer = Vec::with_capacity(1024);
        loop {
            let mut bytes = [0; 1024];
            let count = stream.read(&mut bytes).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&bytes[..count]);
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                if length.is_none_or(|length: usize| body.len() >= length) {
                    return Ok(text.into_owned());
                }
            }
        }
    }
}

/// What an operator sees meanwhile: health and metrics, on a new connection each.
struct Probe {
    stop: Shutdown,
    task: smol::Task<Probed>,
}

/// What a probe has found.
#[derive(Debug, Default)]
struct Probed {
    answers: usize,
    /// The slowest answer.
    slowest: Duration,
    /// Answers other than 200.
    wrong: Vec<String>,
}

impl Probe {
    fn start(system: &System) -> Self {
        let stop = Shutdown::new();
        let client = Client::new(system.patients[0].address()).with_limit(LIMIT);
        let task = runtime::spawn(probe(client, stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) -> Probed {
        self.stop.trigger();
        self.task.await
    }
}

async fn probe(client: Client, stop: Shutdown) -> Probed {
    let mut probed = Probed::default();
    while !stop.is_triggered() {
        for path in ["/actuator/health/liveness", "/actuator/health/readiness", "/metrics"] {
            let started = Instant::now();
            match client.get(path).await {
                Ok(answer) if answer.status == 200 => {}
                Ok(answer) => probed.wrong.push(format!("{path}: {}", answer.text())),
                Err(error) => probed.wrong.push(format!("{path}: {error}")),
            }
            probed.answers += 1;
            probed.slowest = probed.slowest.max(started.elapsed());
        }
        stop.run_until_stopped(smol::Timer::after(Duration::from_millis(100))).await;
    }
    probed
}
