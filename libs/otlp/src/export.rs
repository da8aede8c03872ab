//! What is exported while a service works.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use prost::Message as _;
use runtime::{Shutdown, within};
use smol::{Task, Timer};
use telemetry::{log, metrics, sampler, span};

use crate::{
    Settings,
    collector::Collector,
    delivery::{Delivery, Signal},
    messages,
    queue::queue,
};

/// Time for what is left when the service has stopped.
pub(crate) const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Does a service's work from its beginning to its end, and exports its spans, metrics and log lines to whatever collector
/// there is.
pub async fn exporting<T>(settings: Settings, work: impl Future<Output = T>) -> T {
    let stop = Shutdown::new();
    let exports = start(settings, &stop);
    let outcome = work.await;
    stop.trigger();
    let end = async {
        for export in exports {
            export.await;
        }
    };
    if within(FLUSH_LIMIT, end).await.is_err() {
        tracing::warn!("the last spans, metrics and log lines were not delivered in time");
    }
    outcome
}

fn start(settings: Settings, stop: &Shutdown) -> Vec<Task<()>> {
    let Settings { traces, metrics, logs, sampler, interval, resource, warnings } = settings;
    for warning in warnings {
        tracing::warn!(%warning, "a setting of OpenTelemetry counts as not set");
    }
    let mut exports = Vec::new();
    if let Some(destination) = traces {
        tracing::info!(collector = %destination.url, "exporting traces");
        let resource = resource.clone();
        let message = move |spans| messages::traces(&resource, spans).encode_to_vec();
        let (queue, batches) = queue(Delivery::new(Signal::Traces, Collector::new(destination)), message);
        sampler::set(sampler);
        span::collect(move |span| queue.add(span));
        exports.push(runtime::spawn(batches.run(stop.clone())));
    }
    if let Some(destination) = logs {
        tracing::info!(collector = %destination.url, "exporting log lines");
        let resource = resource.clone();
        let message = move |lines| messages::logs(&resource, lines).encode_to_vec();
        let (queue, batches) = queue(Delivery::new(Signal::Logs, Collector::new(destination)), message);
        log::collect(move |line| queue.add(line));
        exports.push(runtime::spawn(batches.run(stop.clone())));
    }
    if let Some(destination) = metrics {
        tracing::info!(collector = %destination.url, "exporting metrics");
        let delivery = Delivery::new(Signal::Metrics, Collector::new(destination));
        exports.push(runtime::spawn(snapshots(delivery, resource, interval, stop.clone())));
    }
    exports
}

/// Sends every metric as it is now and then, and at the end. What does not arrive is made up for by the next sending:
/// counts go on from the start of the process.
async fn snapshots(mut delivery: Delivery, resource: messages::Attributes, interval: Duration, stop: Shutdown) {
    let started = SystemTime::now();
    while !stop.is_triggered() {
        stop.or_stop(Timer::after(interval)).await;
        let families = metrics::gather();
        let points = families.iter().map(|family| family.get_metric().len() as u64).sum();
        let message = messages::metrics(&resource, &families, started, SystemTime::now());
        delivery.deliver(message.encode_to_vec(), points, &stop).await;
    }
}
