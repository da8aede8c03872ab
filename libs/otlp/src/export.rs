//! Starts and stops the exports of a service.

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
    pipeline::{FLUSH_TIMEOUT, LogPipeline, SpanPipeline},
};

/// Runs a service's work, and exports its spans, metrics and log lines meanwhile to the collectors of the settings. At
/// the end it sends what is left, within two seconds.
pub async fn export_while<T>(settings: Settings, work: impl Future<Output = T>) -> T {
    let stop = Shutdown::new();
    let exports = Exports::start(settings, &stop);
    let outcome = work.await;
    stop.trigger();
    if !timeout(FLUSH_TIMEOUT, exports.end()).await.unwrap_or(false) {
        tracing::warn!("the last spans, metrics and log lines were not delivered in time");
    }
    outcome
}

#[derive(Default)]
struct Exports {
    spans: Option<Arc<SpanPipeline>>,
    lines: Option<Arc<LogPipeline>>,
    metrics: Option<Task<()>>,
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
            let spans = Arc::new(SpanPipeline::new(destination, &resource));
            exports.spans = Some(spans.clone());
            sampler::set(sampler);
            span::collect(move |span| spans.add(span));
        }
        if let Some(destination) = logs {
            tracing::info!(collector = %destination.url, "exporting log lines");
            let lines = Arc::new(LogPipeline::new(destination, &resource));
            exports.lines = Some(lines.clone());
            log::collect(move |line| lines.add(line));
        }
        if let Some(destination) = metrics {
            tracing::info!(collector = %destination.url, "exporting metrics");
            let delivery = Delivery::new(Signal::Metrics, destination);
            exports.metrics =
                Some(runtime::spawn(export_metrics_periodically(delivery, attributes, interval, stop.clone())));
        }
        exports
    }

    /// Sends what is left; returns whether all of it was sent in time.
    async fn end(self) -> bool {
        // The SDK blocks the calling thread.
        let spans = self.spans.map(|spans| smol::unblock(move || spans.shutdown()));
        let lines = self.lines.map(|lines| smol::unblock(move || lines.shutdown()));
        if let Some(metrics) = self.metrics {
            metrics.await;
        }
        let mut sent = true;
        for shutdown in [spans, lines].into_iter().flatten() {
            let result: OTelSdkResult = shutdown.await;
            sent &= result.is_ok();
        }
        sent
    }
}

/// Sends all metrics at every interval, and at the end. A failed export is retried once, at once, because the collector may have
/// closed the idle connection. It is not retried any more: counters are cumulative, so the next export has their values too.
async fn export_metrics_periodically(
    delivery: Delivery,
    resource: messages::Attributes,
    interval: Duration,
    stop: Shutdown,
) {
    let started = SystemTime::now();
    while !stop.is_triggered() {
        stop.run_until_stopped(Timer::after(interval)).await;
        let families = metrics::gather();
        let points = families.iter().map(|family| family.get_metric().len() as u64).sum();
        let message = messages::metrics(&resource, &families, started, SystemTime::now()).encode_to_vec();
        delivery.begin(0);
        if delivery.attempt(&message).await.is_err() {
            let _ = delivery.attempt(&message).await;
        }
        delivery.end(points);
    }
}
