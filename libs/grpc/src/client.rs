use std::{
    future::Future,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use async_compat::Compat;
use config::HostPort;
use runtime::{Backoff, timeout};
use telemetry::{
    Outage, Propagated, Span, SpanKind, TraceContext,
    metrics::{self, HistogramVec, IntCounterVec, IntGaugeVec},
};
use tonic::{
    Code, Request, Status,
    codegen::http::{Uri, uri::Scheme},
    transport::Endpoint,
};

use crate::{
    Breaker, CallError, Channel, FailureKind,
    breaker::Admission,
    code::{STATUS_CODE, code_name, describe},
    retry_budget::RetryBudget,
    transport::{Connector, SequentialExecutor},
};

/// Attempts at one call, the first one included.
const ATTEMPTS: u32 = 3;
/// Pauses between attempts: the first and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(200));
/// Answers in a row that are an error of the peer, after which that is reported.
const MAX_ERRORS: u32 = 5;
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval between HTTP/2 pings while calls are in flight, and the time for the response to one. They detect a peer that is
/// frozen or gone without a RST.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(2));

/// Bytes of `tracestate` and `baggage` in a call, as HTTP/2 counts them: with 1 KiB for all other headers they stay below the
/// 8 KiB of Java's servers, which reject a call with more.
const MAX_PROPAGATED: usize = 7 * 1024;
/// What HTTP/2 counts for each header besides its name and its value.
const HEADER_OVERHEAD: usize = 32;

static CALLS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters("grpc_client_calls_total", "gRPC calls made, by outcome.", &["method", "outcome"])
});
static LATENCY: LazyLock<HistogramVec> = LazyLock::new(|| {
    metrics::latencies("grpc_client_call_duration_seconds", "Time of a gRPC call with its retries.", &["method"])
});
static BREAKER_OPEN: LazyLock<IntGaugeVec> =
    LazyLock::new(|| metrics::gauges("grpc_client_breaker_open", "1 while the circuit breaker is open.", &["peer"]));

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Name of the peer in logs and metrics.
    pub peer: &'static str,
    /// Name of its gRPC service in traces.
    pub service: &'static str,
    /// Its address.
    pub address: HostPort,
    /// Time for a call with all its retries.
    pub deadline: Duration,
    /// TLS; none for plaintext.
    pub tls: Option<ClientTls>,
}

/// How a client speaks TLS.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// The authorities of the peer, and the client's own certificate.
    pub files: tls::ClientSettings,
    /// The name that the peer's certificate must have, if it is not the host of its address.
    pub server_name: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be part of a URI.
    #[error("the address is not valid: {0}")]
    Address(#[from] tonic::transport::Error),
    /// The files for TLS are not valid.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// A client of one gRPC service. A call has one deadline over all its attempts. It is retried only after UNAVAILABLE or a
/// broken connection, and within the retry budget; it fails at once while the circuit breaker is open. A call may arrive
/// twice, so its method has to be idempotent.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    breaker: Breaker,
    outage: Outage,
    /// Answers in a row that were an error of the peer.
    errors: AtomicU32,
    faults: Outage,
    budget: RetryBudget,
    settings: ClientSettings,
}

impl Client {
    /// A client that connects when it is first used, and again whenever it has to.
    ///
    /// # Errors
    /// If the address cannot be part of a URI, or the files for TLS are not valid.
    pub fn new(settings: ClientSettings) -> Result<Self, ClientError> {
        let tls = settings.tls.clone().map(|ClientTls { files, server_name }| {
            let name = server_name.unwrap_or_else(|| settings.address.host.clone());
            tls::Connector::new(settings.peer, files, &["h2"]).map(|connector| (connector, name))
        });
        let tls = tls.transpose()?;
        let mut endpoint = Endpoint::from_shared(format!("http://{}", settings.address))?;
        if tls.is_some() {
            // The connector speaks TLS, so the endpoint has none; requests have the scheme of what is on the wire.
            let mut parts = endpoint.uri().clone().into_parts();
            parts.scheme = Some(Scheme::HTTPS);
            endpoint = endpoint.origin(Uri::from_parts(parts).expect("it has an authority and a path"));
        }
        let endpoint = endpoint
            .executor(SequentialExecutor::new())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1);
        let connector = Connector { address: settings.address.clone(), tls };
        let channel = Channel(endpoint.connect_with_connector_lazy(connector));
        BREAKER_OPEN.with_label_values(&[settings.peer]).set(0);
        Ok(Self {
            channel,
            breaker: Breaker::default(),
            outage: Outage::new(),
            errors: AtomicU32::new(0),
            faults: Outage::new(),
            budget: RetryBudget::full(),
            settings,
        })
    }

    /// Address of the peer.
    pub fn address(&self) -> &HostPort {
        &self.settings.address
    }

    /// Whether the circuit breaker is open: the last calls had no response.
    pub fn is_breaker_open(&self) -> bool {
        self.breaker.is_open()
    }

    /// What the peer answers if it has answered the last calls and could do none of them; see [`FailureKind::Transient`].
    pub fn fault(&self) -> Option<String> {
        self.faults.reason()
    }

    /// Makes a call. `make` is called for each attempt and does all of it, including reading a stream.
    ///
    /// # Errors
    /// The status of the last attempt, or why there is none.
    pub async fn call<T, F>(
        &self,
        method: &'static str,
        trace: TraceContext,
        make: impl Fn(Attempt) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let started = Instant::now();
        let result = match self.breaker.admit(started) {
            Some(admission) => {
                let attempts = Compat::new(self.attempts(started, method, trace, make));
                let result = timeout(self.settings.deadline, attempts).await;
                let result = result.unwrap_or(Err(CallError::Timeout(self.settings.deadline)));
                self.report_to_breaker(admission, result.as_ref().err());
                self.report_fault(result.as_ref().err());
                result
            }
            None => Err(CallError::BreakerOpen),
        };
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => error.outcome(),
        };
        CALLS.with_label_values(&[method, outcome]).inc();
        LATENCY.with_label_values(&[method]).observe(started.elapsed().as_secs_f64());
        result
    }

    async fn attempts<T, F>(
        &self,
        started: Instant,
        method: &'static str,
        trace: TraceContext,
        make: impl Fn(Attempt) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        for number in 1.. {
            let remaining = self.settings.deadline.saturating_sub(started.elapsed());
            let attempt = Attempt { channel: self.channel.clone(), remaining, trace: trace.child() };
            let mut span = Span::start(attempt.trace, SpanKind::Client, "gRPC");
            if span.is_recorded() {
                describe(&mut span, &format!("{}/{method}", self.settings.service));
                span.set("peer.service", self.settings.peer);
            }
            // Boxed, because a call's future takes kilobytes and would be part of every caller's.
            let result = Box::pin(make(attempt)).await;
            end(span, &result);
            match result {
                Ok(response) => {
                    self.budget.success();
                    return Ok(response);
                }
                Err(status) => {
                    let error = CallError::from_status(status);
                    // DEADLINE_EXCEEDED is not retried: no time is left, and the peer is busy.
                    let may_retry = matches!(error.code(), None | Some(Code::Unavailable));
                    if may_retry {
                        self.budget.failure();
                    }
                    if !may_retry || number >= ATTEMPTS || !self.budget.allows_retry() {
                        return Err(error);
                    }
                }
            }
            backoff.pause().await;
        }
        unreachable!("the last attempt returns")
    }

    fn report_to_breaker(&self, admission: Admission, error: Option<&CallError>) {
        let has_changed = match error {
            Some(error) if error.kind() == FailureKind::Unavailable => self.breaker.failure(admission, Instant::now()),
            // Any response, also an error, shows that the peer is up.
            _ => self.breaker.success(),
        };
        if has_changed {
            self.show_breaker(error);
        }
    }

    /// Sets the metric and the outage to the breaker's state, and logs its beginning, with the error of this call, and its end. By
    /// the state and not by what this call has done to it: another thread may have changed it since.
    fn show_breaker(&self, error: Option<&CallError>) {
        let (peer, address) = (self.settings.peer, &self.settings.address);
        self.breaker.show(|is_open| {
            BREAKER_OPEN.with_label_values(&[peer]).set(i64::from(is_open));
            if is_open {
                if self.outage.failed("breaker open") {
                    let error = error.map(tracing::field::display);
                    tracing::warn!(
                        peer,
                        %address,
                        error,
                        "peer unavailable; calls to it fail at once until a probe succeeds"
                    );
                }
            } else if let Some(lasted) = self.outage.recovered() {
                tracing::info!(peer, %address, lasted_ms = lasted.as_millis() as u64, "peer available again");
            }
        });
    }

    /// Tells once that a peer answers every call with an error of its own: neither the breaker nor a failed call tells it.
    fn report_fault(&self, error: Option<&CallError>) {
        let (peer, address) = (self.settings.peer, &self.settings.address);
        match error.map(|error| (error.kind(), error)) {
            // They say nothing about how the peer answers the calls that it has.
            Some((FailureKind::Unavailable | FailureKind::Unsupported, _)) => {}
            // It is about what this call is for, such as an account that somebody has locked.
            Some((_, error)) if error.code() == Some(Code::Aborted) => {}
            Some((FailureKind::Transient, error)) => {
                let errors = self.errors.fetch_add(1, Ordering::Relaxed) + 1;
                if errors >= MAX_ERRORS && self.faults.failed(error.outcome()) {
                    tracing::warn!(peer, %address, %error, "peer answers every call with an error");
                }
            }
            _ => {
                self.errors.store(0, Ordering::Relaxed);
                if let Some(lasted) = self.faults.recovered() {
                    let lasted_ms = lasted.as_millis() as u64;
                    tracing::info!(peer, %address, lasted_ms, "peer answers without errors again");
                }
            }
        }
    }
}

/// One attempt at a call: its channel, the time that is left, and its trace.
#[derive(Clone, Debug)]
pub struct Attempt {
    channel: Channel,
    remaining: Duration,
    trace: TraceContext,
}

impl Attempt {
    /// The channel for a generated client.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request with `grpc-timeout`, so that the peer stops when nobody waits any more, `traceparent`, and the caller's
    /// `tracestate` and `baggage`. What is too large for a peer's limit is left out: a call without it is better than none.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.remaining);
        let traceparent = self.trace.to_string().parse().expect("hexadecimal digits and dashes");
        request.metadata_mut().insert(TraceContext::HEADER, traceparent);
        let mut room = MAX_PROPAGATED;
        for (name, value) in Propagated::current().headers() {
            let Some(rest) = room.checked_sub(name.len() + value.len() + HEADER_OVERHEAD) else { continue };
            room = rest;
            request.metadata_mut().insert(name, value.parse().expect("visible ASCII"));
        }
        request
    }
}

fn end<T>(mut span: Span, result: &Result<T, Status>) {
    let code = result.as_ref().err().map_or(Code::Ok, Status::code);
    span.set(STATUS_CODE, i64::from(code as i32));
    if code == Code::Ok { span.end() } else { span.fail(code_name(code)) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_metric_and_the_outage_are_those_of_the_breaker_whichever_thread_changed_it_last() {
        const PEER: &str = "of two threads";
        let client = runtime::block_on(1, async {
            let (address, deadline) = (HostPort { host: "127.0.0.1".to_owned(), port: 9 }, Duration::from_secs(1));
            Client::new(ClientSettings { peer: PEER, service: "Test", address, deadline, tls: None }).unwrap()
        });
        let fail = || {
            for _ in 0..100 {
                if let Some(admission) = client.breaker.admit(Instant::now()) {
                    client.report_to_breaker(admission, Some(&CallError::Timeout(Duration::ZERO)));
                }
            }
        };
        let succeed = || {
            let admission = Breaker::default().admit(Instant::now()).unwrap();
            for _ in 0..100 {
                client.report_to_breaker(admission, None);
            }
        };
        for round in 0..2000 {
            thread::scope(|threads| {
                threads.spawn(fail);
                threads.spawn(succeed);
            });
            let shown = BREAKER_OPEN.with_label_values(&[PEER]).get() == 1;
            let is_open = client.is_breaker_open();
            assert_eq!((shown, client.outage.is_ongoing()), (is_open, is_open), "round {round}");
        }
    }
}
