//! Scrapes health and metrics of every replica of every service, each second.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use config::HostPorts;
use futures_util::future::{join, join_all};
use runtime::{Shutdown, timeout};
use serde_json::Value as Json;

use crate::{
    address::HostAddress,
    client::{self, RequestError, ServiceRequest, ServiceResponse},
    map::{ANALYTICS, Map, Reading},
    prometheus::samples,
    session::Identity,
};

/// Interval between two scrapes, and timeout of one.
const INTERVAL: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_millis(800);
/// Largest response, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// The context of a trace that is not sampled: the requests of the console must not fill its own store.
pub(crate) const UNSAMPLED: (&str, &str) = ("traceparent", "00-00000000000000000000000000000c05-00000000000000c5-00");

/// Scrapes until the shutdown.
pub(crate) async fn run(map: Map, services: [HostPorts; 3], identity: Option<Identity>, shutdown: Shutdown) {
    let work = async {
        let mut next = smol::Timer::interval(INTERVAL);
        loop {
            let answers =
                join_all(services.iter().enumerate().map(|(service, hosts)| scrape(service, hosts, identity.as_ref())))
                    .await;
            if let Ok(answers) = answers.try_into() {
                map.record(SystemTime::now(), answers);
            }
            let _ = futures_lite::StreamExt::next(&mut next).await;
        }
    };
    shutdown.run_until_stopped::<()>(work).await;
}

async fn scrape(
    service: usize,
    hosts: &HostPorts,
    identity: Option<&Identity>,
) -> Vec<(SocketAddr, Result<Reading, String>)> {
    // In a secure system, health with its details and metrics have ports of their own.
    let shown = identity.map_or(hosts, |identity| &identity.operations()[service]);
    let places = shown.0.iter().map(|host| async {
        let place = HostAddress(host.clone());
        let addresses = timeout(LIMIT, place.resolve()).await.ok().and_then(Result::ok).unwrap_or_default();
        addresses.into_iter().map(|address| (address, place.to_string())).collect::<Vec<_>>()
    });
    let mut replicas: Vec<_> = join_all(places).await.into_iter().flatten().collect();
    replicas.sort();
    replicas.dedup_by_key(|(address, _)| *address);
    let summary = async {
        match identity {
            Some(identity) if service == ANALYTICS => own_summary(identity, hosts).await,
            _ => None,
        }
    };
    let readings = replicas
        .into_iter()
        .map(|(address, host)| async move { (address, read(service, address, &host, identity).await) });
    let (mut readings, summary) = join(join_all(readings), summary).await;
    if let (Some(summary), Some((_, Ok(reading)))) = (summary, readings.first_mut()) {
        reading.summary = Some(summary);
    }
    readings
}

/// The summary of a secure analytics-service, which the console reads as its own user.
async fn own_summary(identity: &Identity, hosts: &HostPorts) -> Option<Json> {
    let host = HostAddress(hosts.0.first()?.clone());
    let work = async {
        let (address, own) = (*host.resolve().await.ok()?.first()?, identity.own().await.ok()?);
        let authorization = own.authorization();
        let headers = [UNSAMPLED, ("authorization", authorization.as_str())];
        let request = ServiceRequest::get("/analytics/summary", &headers);
        let answer = client::send(address, &host.to_string(), Some(identity.tls()), request, MAX_ANSWER, LIMIT).await;
        answer.ok().filter(ServiceResponse::is_success).map(|answer| answer.json())
    };
    timeout(LIMIT, Box::pin(work)).await.ok().flatten()
}

async fn read(service: usize, address: SocketAddr, host: &str, identity: Option<&Identity>) -> Result<Reading, String> {
    let tls = identity.map(Identity::tls);
    let get =
        async |path| client::send(address, host, tls, ServiceRequest::get(path, &[UNSAMPLED]), MAX_ANSWER, LIMIT).await;
    let is_open = identity.is_none();
    let summary = async {
        if service == ANALYTICS && is_open { Some(get("/analytics/summary?scope=instance").await) } else { None }
    };
    let (health, (metrics, summary)) = join(get("/actuator/health/readiness"), join(get("/metrics"), summary)).await;
    let text = |error: RequestError| error.to_string();
    let health = health.map_err(text)?;
    let metrics = metrics.map_err(text)?;
    let summary = summary.and_then(Result::ok).filter(ServiceResponse::is_success).map(|answer| answer.json());
    Ok(Reading { health: health.json(), samples: samples(&String::from_utf8_lossy(&metrics.body)), summary })
}
