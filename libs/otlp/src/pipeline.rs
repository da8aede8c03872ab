//! The SDK's batch processors and exporters for spans and log lines. Each has a thread of its own and needs no runtime.

use std::{sync::Arc, time::Duration};

use opentelemetry::{InstrumentationScope, logs::Logger as _};
use opentelemetry_otlp::{LogExporter, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{self, BatchLogProcessor, LogBatch, LogProcessor as _, SdkLogger, SdkLoggerProvider},
    trace::{self, BatchSpanProcessor, SpanData, SpanProcessor as _},
};
use telemetry::{log::Line, span::FinishedSpan};

use crate::{
    convert,
    delivery::{Delivery, DeliveryClient, QUEUE_SIZE, Signal},
    settings::Destination,
};

/// Items in one delivery at most. A full batch is sent at once.
pub(crate) const BATCH_SIZE: usize = 512;
/// Time to send what is left when the service has stopped.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Queues, batches and sends spans.
#[derive(Debug)]
pub(crate) struct SpanPipeline {
    delivery: Arc<Delivery>,
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl SpanPipeline {
    pub(crate) fn new(destination: Destination, resource: &Resource) -> Self {
        let delivery = Arc::new(Delivery::new(Signal::Traces, destination));
        let exporter = through(&delivery, SpanExporter::builder().with_http()).build().expect(EXPORTER);
        let batches = trace::BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SIZE)
            .with_max_export_batch_size(BATCH_SIZE)
            .with_scheduled_delay(delivery.destination().delay)
            .build();
        let counted = CountingExporter { exporter, delivery: delivery.clone() };
        let mut processor = BatchSpanProcessor::builder(counted).with_batch_config(batches).build();
        processor.set_resource(resource);
        Self { delivery, processor, scope: convert::scope() }
    }

    /// Adds an item to the queue, or counts it as dropped. Never blocks.
    pub(crate) fn add(&self, span: FinishedSpan) {
        if self.delivery.admit() {
            self.processor.on_end(convert::span(span, self.scope.clone()));
        }
    }

    /// Sends what is left; blocks the thread for [`FLUSH_TIMEOUT`] at most.
    pub(crate) fn shutdown(&self) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(FLUSH_TIMEOUT)
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.delivery.waiting()
    }
}

/// Queues, batches and sends log lines.
#[derive(Debug)]
pub(crate) struct LogPipeline {
    delivery: Arc<Delivery>,
    processor: BatchLogProcessor,
    /// Only creates records. Emitting through it would suppress the records of the exporter's own thread.
    logger: SdkLogger,
    scope: InstrumentationScope,
}

impl LogPipeline {
    pub(crate) fn new(destination: Destination, resource: &Resource) -> Self {
        use opentelemetry::logs::LoggerProvider as _;

        let delivery = Arc::new(Delivery::new(Signal::Logs, destination));
        let exporter = through(&delivery, LogExporter::builder().with_http()).build().expect(EXPORTER);
        let batches = logs::BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SIZE)
            .with_max_export_batch_size(BATCH_SIZE)
            .with_scheduled_delay(delivery.destination().delay)
            .build();
        let counted = CountingExporter { exporter, delivery: delivery.clone() };
        let mut processor = BatchLogProcessor::builder(counted).with_batch_config(batches).build();
        processor.set_resource(resource);
        let logger = SdkLoggerProvider::builder().build().logger("");
        Self { delivery, processor, logger, scope: convert::scope() }
    }

    /// Adds an item to the queue, or counts it as dropped. Never blocks.
    pub(crate) fn add(&self, line: Line) {
        if self.delivery.admit() {
            let mut record = self.logger.create_log_record();
            convert::line(line, &mut record);
            self.processor.emit(&mut record, &self.scope);
        }
    }

    /// Sends what is left; blocks the thread for [`FLUSH_TIMEOUT`] at most.
    pub(crate) fn shutdown(&self) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(FLUSH_TIMEOUT)
    }
}

const EXPORTER: &str = "the endpoint is a URL, and the client is given";

/// Has an exporter send through a delivery, with its endpoint and its timeout.
fn through<B: WithExportConfig + WithHttpConfig>(delivery: &Arc<Delivery>, exporter: B) -> B {
    let destination = delivery.destination();
    exporter
        .with_http_client(DeliveryClient(delivery.clone()))
        .with_endpoint(destination.url.as_str())
        .with_timeout(destination.timeout)
}

/// Wraps an exporter of the SDK and counts its deliveries.
#[derive(Debug)]
struct CountingExporter<E> {
    exporter: E,
    delivery: Arc<Delivery>,
}

impl<E> CountingExporter<E> {
    /// Runs an export of this many items, and counts them by outcome.
    async fn count(&self, items: usize, export: impl Future<Output = OTelSdkResult>) -> OTelSdkResult {
        self.delivery.begin(items);
        let result = export.await;
        self.delivery.end(items as u64);
        result
    }
}

impl trace::SpanExporter for CountingExporter<SpanExporter> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.count(batch.len(), self.exporter.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl logs::LogExporter for CountingExporter<LogExporter> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.count(batch.iter().count(), self.exporter.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests;
