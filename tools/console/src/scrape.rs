//! Asks every replica of every service for its health and metrics, each second.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use config::HostPorts;
use futures_util::future::{join, join_all};
use runtime::{Shutdown, timeout};
use serde::Serialize;

use crate::{
    address::Place,
    client::{self, Answer, NoAnswer, Outgoing},
    map::{ANALYTICS, Map, Reading},
};

/// Time between two scrapes, and for one.
const INTERVAL: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_millis(800);
/// Bytes of one answer at most.
const MAX_ANSWER: usize = 1024 * 1024;
/// Samples of one replica that are kept. Ours have some hundred, histograms apart.
const MAX_SAMPLES: usize = 1000;
/// A trace that nobody records: what the console asks must not fill its own store.
pub(crate) const UNSAMPLED: (&str, &str) = ("traceparent", "00-00000000000000000000000000000c05-00000000000000c5-00");

/// One value of a metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) name: String,
    #[serde(serialize_with = "as_object")]
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

fn as_object<S: serde::Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Scrapes until the shutdown.
pub(crate) async fn run(map: Map, services: [HostPorts; 3], shutdown: Shutdown) {
    let work = async {
        let mut next = smol::Timer::interval(INTERVAL);
        loop {
            let answers = join_all(services.iter().enumerate().map(|(service, hosts)| scrape(service, hosts))).await;
            if let Ok(answers) = answers.try_into() {
                map.note(SystemTime::now(), answers);
            }
            let _ = futures_lite::StreamExt::next(&mut next).await;
        }
    };
    shutdown.run_until_stopped::<()>(work).await;
}

async fn scrape(service: usize, hosts: &HostPorts) -> Vec<(SocketAddr, Result<Reading, String>)> {
    let places = hosts.0.iter().map(|host| async {
        let place = Place(host.clone());
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
    let get = async |path| client::send(address, host, Outgoing::get(path, &[UNSAMPLED]), MAX_ANSWER, LIMIT).await;
    let summary = async { if service == ANALYTICS { Some(get("/analytics/summary").await) } else { None } };
    let (health, (metrics, summary)) = join(get("/actuator/health/readiness"), join(get("/metrics"), summary)).await;
    let text = |error: NoAnswer| error.to_string();
    let health = health.map_err(text)?;
    let metrics = metrics.map_err(text)?;
    let summary = summary.and_then(Result::ok).filter(Answer::is_success).map(|answer| answer.json());
    Ok(Reading { health: health.json(), samples: samples(&String::from_utf8_lossy(&metrics.body)), summary })
}

/// The samples of a page in Prometheus' text format, the parts of histograms left out.
pub(crate) fn samples(page: &str) -> Vec<Sample> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.filter_map(sample).filter(|sample| sample.label("le").is_none());
    let is_histogram = |name: &str| name.ends_with("_seconds_sum") || name.ends_with("_seconds_count");
    samples.filter(|sample| !is_histogram(&sample.name)).take(MAX_SAMPLES).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (key, value) = line.trim_end().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = key.split_once('{') else {
        return Some(Sample { name: key.to_owned(), labels: Vec::new(), value });
    };
    let mut rest = labels.strip_suffix('}')?;
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (_, other) => text.push(other),
            }
        };
        labels.push((label.to_owned(), text));
        rest = after[end + 1..].trim_start_matches(',');
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_prometheus_text() {
        let page = "# TYPE a counter\na{x=\"1\",y=\"say \\\"}, {\\\" \\\\\"} 2\nb 3.5\nc_seconds_bucket{le=\"0.1\"} 1\n\
            c_seconds_sum 1\nbroken{x=\"1 4\n";
        let found = samples(page);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            (found[0].label("x"), found[0].label("y"), found[0].value),
            (Some("1"), Some("say \"}, {\" \\"), 2.0)
        );
        assert_eq!((found[1].name.as_str(), found[1].value), ("b", 3.5));
    }
}
