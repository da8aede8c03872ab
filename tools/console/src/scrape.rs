//! Scrapes health and metrics of every replica of every service, each second.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use config::HostPorts;
use futures_util::future::{join, join_all};
use runtime::{Shutdown, timeout};

use crate::{
    address::HostAddress,
    client::{self, RequestError, ServiceRequest, ServiceResponse},
    map::{ANALYTICS, Map, Reading},
    prometheus::samples,
};

/// Interval between two scrapes, and timeout of one.
const INTERVAL: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_millis(800);
/// Largest response, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// The context of a trace that is not sampled: the requests of the console must not fill its own store.
pub(crate) const UNSAMPLED: (&str, &str) = ("traceparent", "00-00000000000000000000000000000c05-00000000000000c5-00");

/// Scrapes until the shutdown.
pub(crate) async fn run(map: Map, services: [HostPorts; 3], shutdown: Shutdown) {
    let work = async {
        let mut next = smol::Timer::interval(INTERVAL);
        loop {
            let answers = join_all(services.iter().enumerate().map(|(service, hosts)| scrape(service, hosts))).await;
            if let Ok(answers) = answers.try_into() {
                map.record(SystemTime::now(), answers);
            }
            let _ = futures_lite::StreamExt::next(&mut next).await;
        }
    };
    shutdown.run_until_stopped::<()>(work).await;
}

async fn scrape(service: usize, hosts: &HostPorts) -> Vec<(SocketAddr, Result<Reading, String>)> {
    let places = hosts.0.iter().map(|host| async {
        let place = HostAddress(host.clone());
        let addresses = timeout(LIMIT, place.resolve()).await.ok().and_then(Result::ok).unwrap_or_default();
        addresses.into_iter().map(|address| (address, place.to_string())).collect::<Vec<_>>()
    });
    let mut replicas: Vec<_> = join_all(places).await.into_iter().flatten().collect();
    replicas.sort();
    replicas.dedup_by_key(|(address, _)| *address);
    join_all(replicas.into_iter().map(|(address, host)| async move { (address, read(service, address, &host).await) }))
        .await
}

async fn read(service: usize, address: SocketAddr, host: &str) -> Result<Reading, String> {
    let get =
        async |path| client::send(address, host, ServiceRequest::get(path, &[UNSAMPLED]), MAX_ANSWER, LIMIT).await;
    let summary = async { if service == ANALYTICS { Some(get("/analytics/summary").await) } else { None } };
    let (health, (metrics, summary)) = join(get("/actuator/health/readiness"), join(get("/metrics"), summary)).await;
    let text = |error: RequestError| error.to_string();
    let health = health.map_err(text)?;
    let metrics = metrics.map_err(text)?;
    let summary = summary.and_then(Result::ok).filter(ServiceResponse::is_success).map(|answer| answer.json());
    Ok(Reading { health: health.json(), samples: samples(&String::from_utf8_lossy(&metrics.body)), summary })
}
