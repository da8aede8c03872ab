//! What is exported while a service works.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::KeyValue;
use opentelemetry_sdk::{Resource, error::OTelSdkResult};
use prost::Message as _;
use runtime::{Shutdown, timeout};
use smol::{Task, Timer};
use telemetry::{log, metrics, sampler, span};

use crate::{
    Settings,
    delivery::{Delivery, Signal},
    metrics as messages,
    pipeline::{FLUSH_LIMIT, Lines, Spans},
};

/// Does a service's work from its beginning to its end, and exports its spans, metrics and log lines to whatever collector
/// there is.
pub async fn exporting<T>(settings: Settings, work: impl Future<Output = T>) -> T {
    let stop = Shutdown::new();
    let exports = Exports::start(settings, &stop);
    let outcome = work.await;
    stop.trigger();
    if !timeout(FLUSH_LIMIT, exports.end()).await.unwrap_or(false) {
        tracing::warn!("the last spans, metrics and log lines were not delivered in time");
    }
    outcome
}

#[derive(Default)]
struct Exports {
    spans: Option<Arc<Spans>>,
    lines: Option<Arc<Lines>>,
    snapshots: Option<Task<()>>,
}

impl Exports {
    fn start(settings: Settings, stop: &Shutdown) -> Self {
        let Settings { traces, metrics, logs, sampler, interval, resource: attributes, warnings } = settings;
        for warning in warnings {
            tracing::warn!(%warning, "a setting of OpenTelemetry counts as not set");
        }
        let pairs = attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
        let resource = Resource::builder_empty().with_attributes(pairs).build();
        let mut exports = Self::default();
        if let Some(destination) = traces {
            tracing::info!(collector = %destination.url, "exporting traces");
            let spans = Arc::new(Spans::new(destination, &resource));
            exports.spans = Some(spans.clone());
            sampler::set(sampler);
            span::collect(move |span| spans.add(span));
        }
        if let Some(destination) = logs {
            tracing::info!(collector = %destination.url, "exporting log lines");
            let lines = Arc::new(Lines::new(destination, &resource));
            exports.lines = Some(lines.clone());
            log::collect(move |line| lines.add(line));
        }
        if let Some(destination) = metrics {
            tracing::info!(collector = %destination.url, "exporting metrics");
            let delivery = Delivery::new(Signal::Metrics, destination);
            exports.snapshots = Some(runtime::spawn(snapshots(delivery, attributes, interval, stop.clone())));
        }
        exports
    }

    /// Sends what is left; gives whether all of it was sent in time.
    async fn end(self) -> bool {
        // The SDK waits on the thread that asks it to.
        let spans = self.spans.map(|spans| smol::unblock(move || spans.shutdown()));
        let lines = self.lines.map(|lines| smol::unblock(move || lines.shutdown()));
        if let Some(snapshots) = self.snapshots {
            snapshots.await;
        }
        let mut sent = true;
        for shutdown in [spans, lines].into_iter().flatten() {
            let result: OTelSdkResult = shutdown.await;
            sent &= result.is_ok();
        }
        sent
    }
}

/// Sends every metric as it is now and then, and at the end. What does not arrive is made up for by the next sending:
/// counts go on from the start of the process.
async fn snapshots(delivery: Delivery, resource: messages::Attributes, interval: Duration, stop: Shutdown) {
    let started = SystemTime::now();
    while !stop.is_triggered() {
        stop.run_until_stopped(Timer::after(interval)).await;
        let families = metrics::gather();
        let points = families.iter().map(|family| family.get_metric().len() as u64).sum();
        let message = messages::metrics(&resource, &families, started, SystemTime::now()).encode_to_vec();
        delivery.begin(0);
        // A connection that the collector has just closed is no outage yet.
        if delivery.attempt(&message).await.is_err() {
            let _ = delivery.attempt(&message).await;
        }
        delivery.end(points);
    }
}
