//! Forwards what the services export to the user's own collector, byte for byte. A collector that is unavailable or slow
//! loses messages and delays nothing.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use runtime::Shutdown;
use smol::channel::{self, Receiver, Sender};
use telemetry::{
    Outage,
    metrics::{self, IntCounterVec},
};

use crate::{
    client::{self, ServiceRequest},
    settings::Collector,
};

/// Most messages in the queue, and their bytes.
const MAX_QUEUED: usize = 64;
const MAX_QUEUED_BYTES: usize = 4 * 1024 * 1024;
/// Timeout of a message.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest response of the collector, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

static FORWARDED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Messages for the user's collector, by what became of them: taken, refused, failed (no answer), dropped for \
                lack of room.";
    metrics::counters("console_forwarded_total", help, &["outcome"])
});

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

/// The sending end of the queue.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder {
    sender: Sender<Message>,
    queued_bytes: Arc<AtomicUsize>,
}

/// The task that sends the messages of the queue.
#[derive(Debug)]
pub(crate) struct ForwarderTask {
    receiver: Receiver<Message>,
    queued_bytes: Arc<AtomicUsize>,
    collector: Collector,
}

/// A bounded queue of messages for a collector.
pub(crate) fn queue(collector: Collector) -> (Forwarder, ForwarderTask) {
    let (sender, receiver) = channel::bounded(MAX_QUEUED);
    let queued_bytes = Arc::new(AtomicUsize::new(0));
    (Forwarder { sender, queued_bytes: queued_bytes.clone() }, ForwarderTask { receiver, queued_bytes, collector })
}

impl Forwarder {
    /// Queues a message; drops and counts it if the queue is full.
    pub(crate) fn offer(&self, message: Message) {
        let size = message.body.len();
        let has_room = self.queued_bytes.fetch_add(size, Ordering::Relaxed) + size <= MAX_QUEUED_BYTES;
        if !has_room || self.sender.try_send(message).is_err() {
            self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            FORWARDED.with_label_values(&["dropped"]).inc();
        }
    }
}

impl ForwarderTask {
    /// Sends one message after the other until the shutdown.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let outage = Outage::new();
        let work = async {
            while let Ok(message) = self.receiver.recv().await {
                let size = message.body.len();
                let failure = self.send(message).await.err();
                self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
                match failure {
                    Some(error) if outage.failed("unavailable") => {
                        tracing::warn!(error, "the user's collector is unavailable; its messages are dropped")
                    }
                    Some(_) => {}
                    None => {
                        if let Some(lasted) = outage.recovered() {
                            let lasted_ms = lasted.as_millis() as u64;
                            tracing::info!(lasted_ms, "the user's collector is available again");
                        }
                    }
                }
            }
        };
        shutdown.run_until_stopped(work).await;
        shutdown.wait().await;
    }

    async fn send(&self, message: Message) -> Result<(), String> {
        let count = |outcome| FORWARDED.with_label_values(&[outcome]).inc();
        let Collector { url, tls } = &self.collector;
        let path = format!("{}{}", url.path.trim_end_matches('/'), message.path);
        let headers: Vec<_> = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let outgoing = ServiceRequest { method: "POST", path: &path, headers: &headers, body: message.body };
        let answer = async {
            let addresses = url.authority.resolve().await.map_err(|error| error.to_string())?;
            let address = addresses.first().ok_or("its name has no address")?;
            let host = url.authority.to_string();
            let sent = client::send(*address, &host, tls.as_ref(), outgoing, MAX_ANSWER, TIMEOUT).await;
            sent.map_err(|error| error.to_string())
        };
        match answer.await {
            Ok(answer) if answer.is_success() => {
                count("taken");
                Ok(())
            }
            Ok(answer) => {
                count("refused");
                Err(format!("it answered {}", answer.status))
            }
            Err(error) => {
                count("failed");
                Err(error)
            }
        }
    }
}
