//! Calls of the other instances.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use config::{HostPort, HostPorts, Reader};
use futures_intrusive::sync::Semaphore;
use runtime::{Failure, timeout};
use serde::de::DeserializeOwned;
use surf::{Client, StatusCode};
use telemetry::{
    Outage, TraceContext,
    metrics::{self, IntCounterVec},
};
use web_client::SingleConnectionClient;

use crate::members::Member;

/// Time for an answer. Whoever asks waits for the slowest instance.
const TIMEOUT: Duration = Duration::from_secs(1);
/// An instance that is unavailable is not asked for this time, so that one that hangs does not delay each query.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is logged at most that an instance rejects calls: which ones depends on their callers.
const REJECTIONS_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Calls of an instance at once. One that hangs takes none of those of another.
const MAX_CALLS: usize = 64;
/// Idle connections that are kept for an instance.
const MAX_IDLE: usize = 8;
/// The largest answer. A series has at most as many points as its limit for each partition.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

static CALLS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters("member_calls_total", "Calls of other instances for their partitions.", &["outcome"])
});

/// Which instances there are, where `PARTITIONS` says what each of them has, and how they are called.
#[derive(Clone, Debug)]
pub struct MemberSettings {
    /// The addresses of all instances, or of all others; none if each one answers for itself.
    addresses: Option<HostPorts>,
    /// If they speak TLS.
    tls: Option<tls::ClientSettings>,
}

impl MemberSettings {
    /// Reads the variables. The other instances speak TLS if this one does. A consumer group says itself
    /// who its members are.
    pub(crate) fn read(reader: &mut Reader, is_tls: bool, is_group: bool) -> Self {
        let about =
            "analytics-services with the other partitions, whose counts answers include; this one may be among them";
        let addresses = reader.variable(&["ANALYTICS_MEMBERS"], about).used_if(!is_group).optional();
        let about = "PEM file with the authorities of other analytics-services, instead of the public ones";
        let ca: Option<String> = reader.variable(&["ANALYTICS_MEMBERS_TLS_CA"], about).used_if(is_tls).optional();
        let tls = is_tls.then(|| tls::ClientSettings { ca: ca.map(Into::into), identity: None });
        Self { addresses, tls }
    }

    /// The members, if they are listed. What each has, only its answers say.
    pub(crate) fn listed(&self) -> Option<Vec<Member>> {
        let HostPorts(addresses) = self.addresses.as_ref()?;
        let member =
            |address: &HostPort| Member { address: address.to_string(), partitions: Vec::new(), is_self: false };
        Some(addresses.iter().map(member).collect())
    }

    /// The connector of a client, if they speak TLS.
    pub(crate) fn connector(&self) -> Result<Option<tls::Connector>, Failure> {
        let connector = self.tls.clone().map(|files| web_client::connector("analytics-service", files));
        connector.transpose().map_err(|error| Failure::configuration(error.to_string()))
    }
}

/// A client of the other instances. Clones share their connections.
#[derive(Clone, Debug)]
pub(crate) struct MemberClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// None for plaintext.
    tls: Option<tls::Connector>,
    instances: Mutex<HashMap<String, Instance>>,
}

/// What is known of an instance.
#[derive(Debug)]
struct Instance {
    permits: Arc<Semaphore>,
    idle: Vec<Client>,
    unavailable_at: Option<Instant>,
    outage: Arc<Outage>,
    rejection_logged_at: Option<Instant>,
}

impl Default for Instance {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(true, MAX_CALLS)),
            idle: Vec::new(),
            unavailable_at: None,
            outage: Arc::default(),
            rejection_logged_at: None,
        }
    }
}

/// Why an instance has no answer to a call.
#[derive(Debug, thiserror::Error)]
enum CallError {
    /// It cannot be reached, does not answer in time, or has a fault, whoever asks.
    #[error("{0}")]
    Unavailable(String),
    /// It rejects this call, such as for its caller's token. That says nothing about the calls of others.
    #[error("it answers {0}")]
    Rejected(StatusCode),
    /// The call had to wait for others, and too little of its time was left. Those say whether the instance is available.
    #[error("too many calls wait for its answers")]
    Busy,
}

impl MemberClient {
    /// A client that speaks TLS if there is a connector.
    pub(crate) fn new(tls: Option<tls::Connector>) -> Self {
        Self(Arc::new(Shared { tls, instances: Mutex::default() }))
    }

    /// The answers of these members to a GET, at once; of those that do not answer in time, none. `authorization` is shown to
    /// them: they have to permit what the caller wants.
    pub(crate) async fn get_all<T: DeserializeOwned + Send + 'static>(
        &self,
        members: &[Member],
        target: &str,
        authorization: Option<&str>,
    ) -> Vec<T> {
        self.forget_others(members);
        let traceparent = TraceContext::current().map(|context| context.to_string());
        let ask = |member: &Member| {
            let (client, address, target) = (self.clone(), member.address.clone(), target.to_owned());
            let headers = [("authorization", authorization), (TraceContext::HEADER, traceparent.as_deref())];
            let headers: Vec<_> =
                headers.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned()))).collect();
            runtime::spawn(async move { client.get(&address, &target, headers).await })
        };
        let calls: Vec<_> = members.iter().map(|member| self.may_ask(member).then(|| ask(member))).collect();
        let mut answers = Vec::with_capacity(members.len());
        for (call, member) in calls.into_iter().zip(members) {
            if let Some(call) = call {
                let answer = call.await;
                self.report(member, answer.as_ref().err());
                answers.extend(answer.ok());
            }
        }
        answers
    }

    /// Forgets who is no member any more.
    fn forget_others(&self, members: &[Member]) {
        self.instances().retain(|address, _| members.iter().any(|member| member.address == *address));
    }

    fn may_ask(&self, member: &Member) -> bool {
        let unavailable_at = self.instances().get(&member.address).and_then(|instance| instance.unavailable_at);
        unavailable_at.is_none_or(|at| at.elapsed() >= PAUSE)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        address: &str,
        target: &str,
        headers: Vec<(&'static str, String)>,
    ) -> Result<T, CallError> {
        let answer = self.get_in_time(address, target, headers).await;
        CALLS.with_label_values(&[if answer.is_ok() { "ok" } else { "failed" }]).inc();
        answer
    }

    async fn get_in_time<T: DeserializeOwned>(
        &self,
        address: &str,
        target: &str,
        headers: Vec<(&'static str, String)>,
    ) -> Result<T, CallError> {
        let permits = self.instances().entry(address.to_owned()).or_default().permits.clone();
        let work = async {
            let body = self.body(address, target, &headers).await?;
            serde_json::from_slice(&body).map_err(|_| unavailable("the answer is that of another version"))
        };
        if let Some(_permit) = permits.try_acquire(1) {
            return timeout(TIMEOUT, Box::pin(work)).await.unwrap_or_else(|elapsed| Err(unavailable(elapsed)));
        }
        let work = async {
            let _permit = permits.acquire(1).await;
            work.await
        };
        timeout(TIMEOUT, Box::pin(work)).await.unwrap_or(Err(CallError::Busy))
    }

    async fn body(
        &self,
        address: &str,
        target: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Vec<u8>, CallError> {
        let scheme = if self.0.tls.is_some() { "https" } else { "http" };
        let url = surf::Url::parse(&format!("{scheme}://{address}{target}")).map_err(unavailable)?;
        let idle = self.instances().get_mut(address).and_then(|instance| instance.idle.pop());
        // The instance may have closed an idle connection meanwhile: then a new one is tried.
        let attempts = [idle, None];
        let first = usize::from(attempts[0].is_none());
        let mut last = None;
        for client in attempts.into_iter().skip(first) {
            let client = client.unwrap_or_else(|| self.connection());
            let mut request = client.get(&url);
            for (name, value) in headers {
                request = request.header(*name, value.as_str());
            }
            match request.send().await {
                Ok(mut response) => {
                    let body = response.body_bytes().await.map_err(unavailable)?;
                    let mut instances = self.instances();
                    let idle = &mut instances.entry(address.to_owned()).or_default().idle;
                    if idle.len() < MAX_IDLE {
                        idle.push(client);
                    }
                    return match response.status() {
                        StatusCode::Ok => Ok(body),
                        status if status.is_client_error() => Err(CallError::Rejected(status)),
                        status => Err(unavailable(format!("it answers {status}"))),
                    };
                }
                Err(error) => last = Some(unavailable(error)),
            }
        }
        Err(last.expect("a new connection is always tried"))
    }

    fn connection(&self) -> Client {
        let backend = SingleConnectionClient::new(MAX_ANSWER);
        Client::with_http_client(match &self.0.tls {
            Some(tls) => backend.with_connector(tls.clone()),
            None => backend,
        })
    }

    /// Logs when an instance becomes unavailable, when it answers again, and that it rejects calls.
    fn report(&self, member: &Member, error: Option<&CallError>) {
        if let Some(CallError::Busy) = error {
            return;
        }
        let Member { address, partitions, .. } = member;
        let now = Instant::now();
        let (outage, logs_rejection) = {
            let mut instances = self.instances();
            let instance = instances.entry(address.clone()).or_default();
            instance.unavailable_at = matches!(error, Some(CallError::Unavailable(_))).then_some(now);
            let is_due = instance.rejection_logged_at.is_none_or(|at| now - at >= REJECTIONS_LOG_INTERVAL);
            let logs_rejection = is_due && matches!(error, Some(CallError::Rejected(_)));
            if logs_rejection {
                instance.rejection_logged_at = Some(now);
            }
            (instance.outage.clone(), logs_rejection)
        };
        if let Some(CallError::Unavailable(error)) = error {
            if outage.failed(error) {
                tracing::warn!(
                    address,
                    ?partitions,
                    error,
                    "another analytics-service does not answer; answers are without its partitions"
                );
            }
            return;
        }
        if let Some(lasted) = outage.recovered() {
            let lasted_ms = lasted.as_millis() as u64;
            tracing::info!(lasted_ms, address, "the other analytics-service answers again");
        }
        if let Some(error) = error.filter(|_| logs_rejection) {
            tracing::warn!(
                address,
                ?partitions,
                %error,
                "another analytics-service rejects calls; answers to their callers are without its partitions"
            );
        }
    }

    fn instances(&self) -> MutexGuard<'_, HashMap<String, Instance>> {
        // Nothing panics while it is held.
        self.0.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unavailable(error: impl ToString) -> CallError {
    CallError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use smol::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use testbed::until;

    use super::*;

    /// Answers each request on a connection of its own, with the status that is its token.
    async fn instance() -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).await.unwrap();
                    request.extend(byte);
                }
                let request = String::from_utf8(request).unwrap();
                let (_, status) = request.split_once("authorization: ").unwrap();
                let response =
                    format!("HTTP/1.1 {} x\r\nContent-Length: 1\r\nConnection: close\r\n\r\n1", &status[..3]);
                stream.write_all(response.as_bytes()).await.unwrap();
            }
        };
        runtime::spawn(serve).detach();
        Member { address, partitions: Vec::new(), is_self: false }
    }

    #[test]
    fn an_instance_that_hangs_costs_the_others_none_of_their_calls() {
        runtime::block_on(1, async {
            // The system accepts its connections, and nobody reads from them.
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let hanging = [Member { address: address.clone(), partitions: Vec::new(), is_self: false }];
            let client = MemberClient::new(None);
            let ask = || {
                let (client, hanging) = (client.clone(), hanging.clone());
                runtime::spawn(async move { client.get_all::<u32>(&hanging, "/", None).await.len() })
            };
            let calls: Vec<_> = (0..MAX_CALLS * 2).map(|_| ask()).collect();
            let is_busy = || client.instances().get(&address).is_some_and(|instance| instance.permits.permits() == 0);
            until("all permits of the one that hangs are used", async || is_busy()).await;
            let healthy = [instance().await];
            let answers = client.get_all::<u32>(&healthy, "/", Some("200")).await;
            assert_eq!(answers, [1], "it waited for the calls of another instance");
            for call in calls {
                assert_eq!(call.await, 0);
            }
        });
    }

    #[test]
    fn a_call_that_waited_for_others_says_nothing_about_the_instance() {
        let client = MemberClient::new(None);
        let member = Member { address: "127.0.0.1:1".to_owned(), partitions: Vec::new(), is_self: false };
        client.report(&member, Some(&CallError::Busy));
        assert!(client.may_ask(&member));
        client.report(&member, Some(&unavailable("no answer")));
        client.report(&member, Some(&CallError::Busy));
        assert!(!client.may_ask(&member), "its outage goes on");
    }

    #[test]
    fn a_rejected_caller_costs_no_other_its_answer() {
        runtime::block_on(1, async {
            let (client, instances) = (MemberClient::new(None), [instance().await]);
            let ask = async |status: &'static str| client.get_all::<u32>(&instances, "/", Some(status)).await.len();
            assert_eq!(ask("200").await, 1);
            for rejection in ["400", "401", "403", "421", "431"] {
                assert_eq!(ask(rejection).await, 0, "{rejection}");
                assert_eq!(ask("200").await, 1, "after {rejection}");
            }
            assert_eq!(ask("503").await, 0);
            assert_eq!(ask("200").await, 0, "one with a fault is not asked for a while");
        });
    }
}
