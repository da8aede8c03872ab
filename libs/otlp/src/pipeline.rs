//! The SDK's queue, batches and exporter of a signal: a thread of their own, and no runtime.

use std::{sync::Arc, time::Duration};

use opentelemetry::{InstrumentationScope, logs::Logger as _};
use opentelemetry_otlp::{LogExporter, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{self, BatchLogProcessor, LogBatch, LogProcessor as _, SdkLogger, SdkLoggerProvider},
    trace::{self, BatchSpanProcessor, SpanData, SpanProcessor as _},
};
use telemetry::{log::Line, span::Finished};

use crate::{
    convert,
    delivery::{Delivery, DeliveryClient, QUEUE, Signal},
    settings::Destination,
};

/// Items of one delivery at most. As many wake the exporter before its time.
pub(crate) const BATCH: usize = 512;
/// How long an item waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// Time for what is left when the service has stopped.
pub(crate) const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Takes spans and sends them.
#[derive(Debug)]
pub(crate) struct Spans {
    delivery: Arc<Delivery>,
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl Spans {
    pub(crate) fn new(destination: Destination, resource: &Resource) -> Self {
        let delivery = Arc::new(Delivery::new(Signal::Traces, destination));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(DeliveryClient(delivery.clone()))
            .with_endpoint(delivery.destination().url.as_str())
            .with_timeout(delivery.destination().timeout)
            .build()
            .expect("the endpoint is a URL, and the client is given");
        let batches = trace::BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let counted = CountingExporter { exporter, delivery: delivery.clone() };
        let mut processor = BatchSpanProcessor::builder(counted).with_batch_config(batches).build();
        processor.set_resource(resource);
        Self { delivery, processor, scope: convert::scope() }
    }

    /// Never waits.
    pub(crate) fn add(&self, span: Finished) {
        if self.delivery.admit() {
            self.processor.on_end(convert::span(span, self.scope.clone()));
        }
    }

    /// Sends what is left; waits [`FLUSH_LIMIT`] at most, on the thread.
    pub(crate) fn shutdown(&self) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(FLUSH_LIMIT)
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.delivery.waiting()
    }
}

/// Takes log lines and sends them.
#[derive(Debug)]
pub(crate) struct Lines {
    delivery: Arc<Delivery>,
    processor: BatchLogProcessor,
    /// Only makes records: a record that went through it from the exporter's own thread would be suppressed.
    logger: SdkLogger,
    scope: InstrumentationScope,
}

impl Lines {
    pub(crate) fn new(destination: Destination, resource: &Resource) -> Self {
        use opentelemetry::logs::LoggerProvider as _;

        let delivery = Arc::new(Delivery::new(Signal::Logs, destination));
        let exporter = LogExporter::builder()
            .with_http()
            .with_http_client(DeliveryClient(delivery.clone()))
            .with_endpoint(delivery.destination().url.as_str())
            .with_timeout(delivery.destination().timeout)
            .build()
            .expect("the endpoint is a URL, and the client is given");
        let batches = logs::BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let counted = CountingExporter { exporter, delivery: delivery.clone() };
        let mut processor = BatchLogProcessor::builder(counted).with_batch_config(batches).build();
        processor.set_resource(resource);
        let logger = SdkLoggerProvider::builder().build().logger("");
        Self { delivery, processor, logger, scope: convert::scope() }
    }

    /// Never waits.
    pub(crate) fn add(&self, line: Line) {
        if self.delivery.admit() {
            let mut record = self.logger.create_log_record();
            convert::line(line, &mut record);
            self.processor.emit(&mut record, &self.scope);
        }
    }

    /// Sends what is left; waits [`FLUSH_LIMIT`] at most, on the thread.
    pub(crate) fn shutdown(&self) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(FLUSH_LIMIT)
    }
}

/// An exporter of the SDK whose deliveries are counted.
#[derive(Debug)]
struct CountingExporter<E> {
    exporter: E,
    delivery: Arc<Delivery>,
}

impl<E> CountingExporter<E> {
    /// Does an export of so many items, and counts them.
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
