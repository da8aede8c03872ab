//! Calls of the other instances.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use config::{HostPort, HostPorts, Reader};
use runtime::{Failure, timeout};
use serde::de::DeserializeOwned;
use smol::lock::Semaphore;
use surf::{Client, StatusCode};
use telemetry::{
    Outage, TraceContext,
    metrics::{self, IntCounterVec},
};
use web_client::SingleConnectionClient;

use crate::members::Member;

/// Time for an answer. Whoever asks waits for the slowest instance.
const TIMEOUT: Duration = Duration::from_secs(1);
/// After a failure an instance is not asked for this time, so that one that hangs does not delay each query.
const PAUSE: Duration = Duration::from_millis(500);
/// Calls at once, of all instances together.
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
    permits: Semaphore,
}

/// What is known of an instance.
#[derive(Debug, Default)]
struct Instance {
    idle: Vec<Client>,
    failed: Option<Instant>,
    outage: Arc<Outage>,
}

impl MemberClient {
    /// A client that speaks TLS if there is a connector.
    pub(crate) fn new(tls: Option<tls::Connector>) -> Self {
        Self(Arc::new(Shared { tls, instances: Mutex::default(), permits: Semaphore::new(MAX_CALLS) }))
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
                self.report(member, answer.as_ref().err().map(String::as_str));
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
        let failed = self.instances().get(&member.address).and_then(|instance| instance.failed);
        failed.is_none_or(|at| at.elapsed() >= PAUSE)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        address: &str,
        target: &str,
        headers: Vec<(&'static str, String)>,
    ) -> Result<T, String> {
        let work = async {
            let _permit = self.0.permits.acquire().await;
            let body = self.body(address, target, &headers).await?;
            serde_json::from_slice(&body).map_err(|_| "the answer is that of another version".to_owned())
        };
        let answer = timeout(TIMEOUT, Box::pin(work)).await.unwrap_or_else(|elapsed| Err(elapsed.to_string()));
        CALLS.with_label_values(&[if answer.is_ok() { "ok" } else { "failed" }]).inc();
        answer
    }

    async fn body(&self, address: &str, target: &str, headers: &[(&'static str, String)]) -> Result<Vec<u8>, String> {
        let scheme = if self.0.tls.is_some() { "https" } else { "http" };
        let url = surf::Url::parse(&format!("{scheme}://{address}{target}")).map_err(|error| error.to_string())?;
        let idle = self.instances().get_mut(address).and_then(|instance| instance.idle.pop());
        // The instance may have closed an idle connection meanwhile: then a new one is tried.
        let attempts = [idle, None];
        let first = usize::from(attempts[0].is_none());
        let mut last = String::new();
        for client in attempts.into_iter().skip(first) {
            let client = client.unwrap_or_else(|| self.connection());
            let mut request = client.get(&url);
            for (name, value) in headers {
                request = request.header(*name, value.as_str());
            }
            match request.send().await {
                Ok(mut response) => {
                    let body = response.body_bytes().await.map_err(|error| error.to_string())?;
                    let mut instances = self.instances();
                    let idle = &mut instances.entry(address.to_owned()).or_default().idle;
                    if idle.len() < MAX_IDLE {
                        idle.push(client);
                    }
                    return match response.status() {
                        StatusCode::Ok => Ok(body),
                        status => Err(format!("it answers {status}")),
                    };
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    fn connection(&self) -> Client {
        let backend = SingleConnectionClient::new(MAX_ANSWER);
        Client::with_http_client(match &self.0.tls {
            Some(tls) => backend.with_connector(tls.clone()),
            None => backend,
        })
    }

    /// Logs when an instance stops answering, and when it answers again.
    fn report(&self, member: &Member, error: Option<&str>) {
        let Member { address, partitions, .. } = member;
        let outage = {
            let mut instances = self.instances();
            let instance = instances.entry(address.clone()).or_default();
            instance.failed = error.map(|_| Instant::now());
            instance.outage.clone()
        };
        match error {
            Some(error) => {
                if outage.failed(error) {
                    tracing::warn!(
                        address,
                        ?partitions,
                        error,
                        "another analytics-service does not answer; answers are without its partitions"
                    );
                }
            }
            None => {
                if let Some(lasted) = outage.recovered() {
                    let lasted_ms = lasted.as_millis() as u64;
                    tracing::info!(lasted_ms, address, "the other analytics-service answers again");
                }
            }
        }
    }

    fn instances(&self) -> MutexGuard<'_, HashMap<String, Instance>> {
        // Nothing panics while it is held.
        self.0.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
