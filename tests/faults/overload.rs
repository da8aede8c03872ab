//! Overload: four times the peak rate of patient-service.
//!
//! The clients are an open loop: requests start on schedule, and a latency counts from the scheduled start. The clients have
//! half of the CPU cores and the system has the others, because real clients run on other machines. `OVERLOAD_SECONDS` is the
//! duration (10).
//!
//! A separate test program, because no other test may run at the same time.
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

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use support::{audit, fast_broker, logged, register_many, system};

/// The closed loop that measures the peak: its clients, the duration of a run, and the maximum number of runs. It is repeated
/// until a run is hardly faster than the one before: a new broker gets faster for many seconds, and the peak must not be
/// underestimated.
const PEAK_CLIENTS: usize = 64;
const PEAK: Duration = Duration::from_secs(5);
const MAX_PEAK_RUNS: usize = 6;
const MIN_SPEEDUP: f64 = 1.1;
/// The offered rate as a multiple of the peak.
const OVERLOAD: f64 = 4.0;
/// Connections of the open loop: enough that requests start on schedule while others wait for their responses.
const CONNECTIONS: usize = 1024;
/// Timeout of a request: longer than any deadline of the service.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What the test expects of the service.
struct Expectations {
    /// The minimum fraction of the offered requests that are sent: for the others, no connection was free.
    sent: f64,
    /// The minimum number of rejected requests for each accepted one.
    rejections: f64,
    /// The maximum number of overload periods in the log.
    overload_periods: usize,
    /// The minimum goodput as a fraction of the peak.
    goodput: f64,
    /// The maximum latency of accepted requests: p99, and of all (`DATABASE_ACQUIRE_DEADLINE`, `DATABASE_DEADLINE` and
    /// `BILLING_DEADLINE` bound it).
    accepted: (Duration, Duration),
    /// The maximum latency of rejected requests: p50 (rejected at the limit), and p99 (after `DATABASE_ACQUIRE_DEADLINE`).
    rejected: (Duration, Duration),
    /// The maximum latency of health checks.
    health: Duration,
    /// The maximum memory in bytes: the limit in docker-compose.yaml.
    memory: u64,
    /// By how much requests right after the overload may be slower than usual: p50, and p90.
    recovered: (Duration, Duration),
}

const RELEASE: Expectations = Expectations {
    sent: 0.99,
    rejections: 1.0,
    overload_periods: 1,
    goodput: 0.8,
    accepted: (Duration::from_secs(2), Duration::from_secs(5)),
    rejected: (Duration::from_millis(250), Duration::from_secs(2)),
    health: Duration::from_secs(2),
    memory: 64 << 20,
    recovered: (Duration::from_millis(5), Duration::from_millis(50)),
};

/// A debug build on a slow machine cannot read as many requests: they wait on their connections, and some are never sent. Its
/// latencies depend on the build, not on the service. The test still shows that the service keeps working, rejects requests,
/// stays within its memory and recovers; with an unbounded queue it would reject too few. After a pause of the machine it may
/// catch up, so there may be several overload periods.
const DEBUG: Expectations = Expectations {
    sent: 0.6,
    rejections: 0.5,
    overload_periods: 3,
    goodput: 0.5,
    accepted: (Duration::from_secs(8), Duration::from_secs(12)),
    rejected: (Duration::from_secs(3), Duration::from_secs(8)),
    health: Duration::from_secs(5),
    memory: 96 << 20,
    recovered: (Duration::from_millis(250), Duration::from_secs(1)),
};

const EXPECTED: Expectations = if cfg!(debug_assertions) { DEBUG } else { RELEASE };

#[test]
fn at_four_times_the_peak_it_serves_its_peak_and_rejects_the_rest() {
    let seconds = std::env::var("OVERLOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let length = Duration::from_secs(seconds);
    let cores = Cores::find();
    pin_threads(&cores.system);
    runtime::block_on(2, async {
        let mut system = system(fast_broker(), 1, &[]).await;
        // From here on, threads belong to the clients.
        pin_threads(&cores.clients);
        let acknowledged = Acknowledged::default();
        let address = system.patients[0].address();
        let run_load =
            |connections, rate, length| offer(address.clone(), connections, rate, length, acknowledged.clone());

        let usual = register_many(&system.patient_client(), &acknowledged, 50).await;
        let mut before = run_load(PEAK_CLIENTS, None, PEAK).await;
        for _ in 1..MAX_PEAK_RUNS {
            let next = run_load(PEAK_CLIENTS, None, PEAK).await;
            let faster = next.goodput(PEAK) / before.goodput(PEAK);
            if faster > 1.0 {
                before = next;
            }
            if faster < MIN_SPEEDUP {
                break;
            }
        }
        let peak = before.goodput(PEAK);
        let probe = Probe::start(&system);
        let offered = peak * OVERLOAD;
        let during = run_load(CONNECTIONS, Some(offered), length).await;
        let probe_results = probe.stop().await;
        let first = register_many(&system.patient_client(), &acknowledged, 20).await;
        let after = run_load(PEAK_CLIENTS, None, PEAK).await;

        let memory = system.patients[0].process().peak_memory();
        let goodput = during.goodput(length);
        let peak_after = after.goodput(PEAK);
        println!(
            "peak {peak:.0}/s before, {peak_after:.0}/s after; offered {offered:.0}/s for {seconds} s: {goodput:.0}/s accepted \
             ({:.0} % of the peak; {} pending at billing), {} rejected, {} never sent\n\
             accepted: {}; rejected: {}; at the peak: {}\n\
             health: {} responses, the slowest after {:?}; peak memory {} KiB\n\
             sequential requests: {} before, {} right after",
            goodput / peak * 100.0,
            during.pending,
            during.rejected.len(),
            during.never_sent,
            Percentiles(&during.accepted),
            Percentiles(&during.rejected),
            Percentiles(&before.accepted),
            probe_results.responses,
            probe_results.slowest,
            memory >> 10,
            Percentiles(&usual),
            Percentiles(&first),
        );
        // The offered rate was high enough, and rejected requests got 503 with Retry-After.
        let never_sent = during.never_sent as f64 / (offered * length.as_secs_f64());
        assert!(never_sent <= 1.0 - EXPECTED.sent, "{} were never sent", during.never_sent);
        assert!(during.unexpected.is_empty(), "{:?}", &during.unexpected[..during.unexpected.len().min(10)]);
        let rejections = during.rejected.len() as f64 / during.accepted.len() as f64;
        assert!(
            rejections > EXPECTED.rejections,
            "it was not overloaded: {rejections:.2} rejected requests for each accepted one"
        );
        // It works at its peak rate, in time, within its memory, and logs the overload.
        assert!(
            goodput >= peak.min(peak_after) * EXPECTED.goodput,
            "{goodput:.0}/s of {peak:.0}/s and {peak_after:.0}/s"
        );
        assert!(at(&during.accepted, 0.99) < EXPECTED.accepted.0 && at(&during.accepted, 1.0) < EXPECTED.accepted.1);
        assert!(at(&during.rejected, 0.5) < EXPECTED.rejected.0 && at(&during.rejected, 0.99) < EXPECTED.rejected.1);
        assert!(memory < EXPECTED.memory, "{} KiB", memory >> 10);
        assert!(probe_results.unexpected.is_empty(), "{:?}", probe_results.unexpected);
        assert!(probe_results.slowest < EXPECTED.health, "{:?}", probe_results.slowest);
        let started_periods = logged(&system.patients[0], "too many requests in flight; more are rejected");
        let ended_periods = logged(&system.patients[0], "requests are accepted again");
        assert!((1..=EXPECTED.overload_periods).contains(&started_periods), "logged {started_periods} times");
        assert_eq!(started_periods, ended_periods, "the end of each period is logged");
        assert_eq!(
            logged(&system.patients[0], "the database is unavailable"),
            0,
            "the database was busy, not unavailable"
        );
        // It has recovered: the first requests succeed, as fast as before.
        assert!(at(&first, 0.5) < at(&usual, 0.5) * 3 + EXPECTED.recovered.0);
        assert!(at(&first, 0.9) < at(&usual, 1.0) + EXPECTED.recovered.1);
        audit(&system, &acknowledged).await;
    });
}

/// The CPU cores of each side.
struct Cores {
    system: CpuSet,
    clients: CpuSet,
}

impl Cores {
    /// Half of the cores for each side. A single core is shared.
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

/// Pins every thread of this process, and the threads and processes that it starts from now on, to these cores.
fn pin_threads(cores: &CpuSet) {
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let id = thread.unwrap().file_name().to_str().unwrap().parse().unwrap();
        // The thread may have ended.
        let _ = sched_setaffinity(Pid::from_raw(id), cores);
    }
}

/// The results of clients.
#[derive(Debug, Default)]
struct ClientStats {
    /// Latencies of accepted requests, and of 503 with `Retry-After`, the shortest first.
    accepted: Vec<Duration>,
    rejected: Vec<Duration>,
    /// All other responses and errors.
    unexpected: Vec<String>,
    /// Scheduled requests for which no connection was free.
    never_sent: u64,
    /// Accepted requests with a pending billing account.
    pending: usize,
}

impl ClientStats {
    fn goodput(&self, length: Duration) -> f64 {
        self.accepted.len() as f64 / length.as_secs_f64()
    }
}

/// A quantile of sorted times.
fn at(times: &[Duration], quantile: f64) -> Duration {
    let index = (times.len() as f64 * quantile) as usize;
    times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

struct Percentiles<'a>(&'a [Duration]);

impl std::fmt::Display for Percentiles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.1?}, p99 {:.1?}, max {:.1?}", at(self.0, 0.5), at(self.0, 0.99), at(self.0, 1.0))
    }
}

/// Registers patients for `length`: at `rate`, or else each client in a closed loop.
async fn offer(
    address: String,
    connections: usize,
    rate: Option<f64>,
    length: Duration,
    acknowledged: Acknowledged,
) -> ClientStats {
    let begin = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..connections)
        .map(|_| {
            let (address, next, acknowledged) = (address.clone(), next.clone(), acknowledged.clone());
            runtime::spawn(async move {
                let (mut connection, mut stats) = (Connection { address, stream: None }, ClientStats::default());
                loop {
                    let scheduled = match rate {
                        Some(rate) => {
                            begin + Duration::from_secs_f64(next.fetch_add(1, Ordering::Relaxed) as f64 / rate)
                        }
                        None => Instant::now(),
                    };
                    if scheduled >= begin + length {
                        return stats;
                    }
                    if Instant::now() >= begin + length {
                        stats.never_sent += 1;
                        continue;
                    }
                    smol::Timer::at(scheduled).await;
                    match connection.register().await {
                        Ok(RegisterResult::Stored { id, pending }) => {
                            stats.pending += usize::from(pending);
                            acknowledged.stored(id, 1);
                            stats.accepted.push(scheduled.elapsed());
                        }
                        Ok(RegisterResult::Rejected) => stats.rejected.push(scheduled.elapsed()),
                        Ok(RegisterResult::Other(response)) => stats.unexpected.push(response),
                        Err(error) => {
                            connection.stream = None;
                            stats.unexpected.push(error.to_string());
                        }
                    }
                }
            })
        })
        .collect();
    let mut all = ClientStats::default();
    for client in clients {
        let stats = client.await;
        all.accepted.extend(stats.accepted);
        all.rejected.extend(stats.rejected);
        all.unexpected.extend(stats.unexpected);
        all.never_sent += stats.never_sent;
        all.pending += stats.pending;
    }
    all.accepted.sort();
    all.rejected.sort();
    all
}

enum RegisterResult {
    Stored {
        id: Uuid,
        pending: bool,
    },
    /// 503 with `Retry-After`.
    Rejected,
    Other(String),
}

/// A minimal HTTP client, because the generator may share cores with the measured system.
struct Connection {
    address: String,
    stream: Option<TcpStream>,
}

impl Connection {
    async fn register(&mut self) -> io::Result<RegisterResult> {
        let body = format!(
            r#"{{"name":"Jane Doe","email":"{}@example.org","address":"1 Main Street","dateOfBirth":"1990-12-31"}}"#,
            Uuid::now_v7()
        );
        let request = format!(
            "POST /patients HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let response = timeout(TIMEOUT, self.send(request.as_bytes())).await.map_err(io::Error::other)?;
        let response = response?;
        Ok(match response.get(9..12) {
            Some("201") => {
                let id = response.split_once("\"id\":\"").and_then(|(_, rest)| rest.get(..36)?.parse().ok());
                let pending = response.contains("PENDING");
                id.map_or_else(|| RegisterResult::Other(response.clone()), |id| RegisterResult::Stored { id, pending })
            }
            Some("503") if response.contains("\r\nretry-after: ") => RegisterResult::Rejected,
            _ => RegisterResult::Other(response),
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
        let mut response = Vec::with_capacity(1024);
        loop {
            let mut bytes = [0; 1024];
            let count = stream.read(&mut bytes).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            response.extend_from_slice(&bytes[..count]);
            let text = String::from_utf8_lossy(&response);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                if length.is_none_or(|length: usize| body.len() >= length) {
                    return Ok(text.into_owned());
                }
            }
        }
    }
}

/// Reads health and metrics meanwhile, each on a new connection.
struct Probe {
    stop: Shutdown,
    task: smol::Task<ProbeResults>,
}

/// The results of a probe.
#[derive(Debug, Default)]
struct ProbeResults {
    responses: usize,
    /// The longest latency.
    slowest: Duration,
    /// Responses other than 200, and errors.
    unexpected: Vec<String>,
}

impl Probe {
    fn start(system: &System) -> Self {
        let stop = Shutdown::new();
        let client = Client::new(system.patients[0].address()).with_timeout(TIMEOUT);
        let task = runtime::spawn(probe(client, stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) -> ProbeResults {
        self.stop.trigger();
        self.task.await
    }
}

async fn probe(client: Client, stop: Shutdown) -> ProbeResults {
    let mut probe_results = ProbeResults::default();
    while !stop.is_triggered() {
        for path in ["/actuator/health/liveness", "/actuator/health/readiness", "/metrics"] {
            let started = Instant::now();
            match client.get(path).await {
                Ok(response) if response.status == 200 => {}
                Ok(response) => probe_results.unexpected.push(format!("{path}: {}", response.text())),
                Err(error) => probe_results.unexpected.push(format!("{path}: {error}")),
            }
            probe_results.responses += 1;
            probe_results.slowest = probe_results.slowest.max(started.elapsed());
        }
        stop.run_until_stopped(smol::Timer::after(Duration::from_millis(100))).await;
    }
    probe_results
}
