//! Forwards dead letters from the state to the dead letter topic, with the original bytes and with headers for origin and error.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::Utc;
use codec::dead_letter::{self, Origin};
use kafka::{Producer, Record};
use runtime::{Backoff, Notify, Shutdown, timeout};
use telemetry::Outage;
use thiserror::Error;

use crate::{
    read_model::ReadModel,
    settings::Settings,
    state::{DeadLetter, SharedState, State, StateError, StoredDeadLetter},
};

/// The largest number of dead letters in one batch.
const MAX_BATCH: i64 = 20;
/// The largest size of a batch, unless its first dead letter alone is larger: about the default `max.message.bytes`.
const MAX_BATCH_BYTES: i64 = 1024 * 1024;
/// Poll interval for dead letters of an earlier run, which notify nobody.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Pauses after failures.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Why dead letters are not forwarded, or will be again.
#[derive(Debug, Error)]
pub enum ForwardError {
    /// The broker is unavailable or rejects the request.
    #[error(transparent)]
    Kafka(#[from] kafka::Error),
    /// They are on their topic, and the state cannot be told so.
    #[error("forwarded dead letters cannot be marked: {0}")]
    State(#[source] StateError),
}

/// Forwards dead letters.
#[derive(Debug)]
pub struct Forwarder {
    state: Arc<SharedState>,
    settings: Settings,
    read_model: ReadModel,
    producer: Producer,
}

impl Forwarder {
    /// A forwarder of the dead letters in this state. It reports errors in the read model.
    pub fn new(state: Arc<SharedState>, settings: Settings, read_model: ReadModel) -> Self {
        let producer = Producer::new(settings.kafka.clone(), &settings.dead_letter_topic);
        Self { state, settings, read_model, producer }
    }

    /// Forwards until the shutdown. `stored` is notified when there are new dead letters.
    pub async fn run(mut self, stored: Arc<Notify>, shutdown: Shutdown) {
        let work = async {
            let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
            let outage = Outage::new();
            loop {
                let step = self.step().await;
                self.report(&step);
                match step {
                    Ok(0) => {
                        let _ = timeout(POLL_INTERVAL, stored.wait()).await;
                    }
                    Ok(forwarded) => {
                        let lasted_ms = outage.recovered().map(|lasted| lasted.as_millis() as u64);
                        tracing::info!(forwarded, lasted_ms, "dead letters forwarded");
                        backoff.reset();
                    }
                    Err(error) => {
                        match &error {
                            ForwardError::Kafka(error) if outage.failed("not forwarded") => {
                                tracing::warn!(%error, "dead letters cannot be forwarded; they wait in the state");
                            }
                            ForwardError::State(error) if outage.failed("not marked") => {
                                tracing::warn!(%error, "forwarded dead letters cannot be marked in the state; they are sent again until they can");
                            }
                            _ => {}
                        }
                        backoff.pause().await;
                    }
                }
            }
        };
        shutdown.run_until_stopped(work).await;
    }

    /// Reports the outcome of a step in the read model, which also wakes ingest when it waits for space in the state.
    fn report(&self, step: &Result<usize, ForwardError>) {
        let error = step.as_ref().err().map(ToString::to_string);
        if matches!(step, Ok(1..)) || self.read_model.read(|snapshot| snapshot.dead_letters.error != error) {
            self.read_model.change(|snapshot| snapshot.dead_letters.error = error);
        }
    }

    /// Forwards the oldest dead letters. Returns their number.
    ///
    /// # Errors
    /// If the broker is unavailable or rejects the request, or the state does not take that they are forwarded.
    pub async fn step(&mut self) -> Result<usize, ForwardError> {
        // Ingest opens a closed state and reports the error.
        let waiting = async |state: &mut State| state.waiting_dead_letters(MAX_BATCH, MAX_BATCH_BYTES).await;
        let Ok(dead_letters) = self.state.with(waiting).await else { return Ok(0) };
        if dead_letters.is_empty() {
            return Ok(0);
        }
        let (forwarded, outcome) =
            match self.send(dead_letters.iter().map(|stored| self.record(&stored.dead_letter)).collect()).await {
                Ok(()) => (dead_letters.len(), Ok(())),
                // One of them is too large for the topic: send each one alone.
                Err(kafka::Error::RecordRejected(_)) => self.send_each(&dead_letters).await,
                Err(kafka::Error::UnknownTopic) => {
                    kafka::create_topic(&self.settings.kafka, &self.settings.dead_letter_topic, 1).await?;
                    return Ok(0);
                }
                Err(error) => return Err(error.into()),
            };
        if let Some(last) = dead_letters[..forwarded].last() {
            // If this fails, they are forwarded again, after a pause: else a full disk would fill their topic.
            let mark = async |state: &mut State| state.mark_forwarded(last.id).await;
            self.state.with(mark).await.map_err(ForwardError::State)?;
        }
        outcome?;
        Ok(forwarded)
    }

    /// Sends each dead letter alone. Of one that the topic rejects, it sends what is known of it without its content: if the topic
    /// rejects that too, its configuration may be wrong, and the dead letter waits. Returns how many were sent.
    async fn send_each(&mut self, dead_letters: &[StoredDeadLetter]) -> (usize, Result<(), kafka::Error>) {
        for (sent, StoredDeadLetter { dead_letter, .. }) in dead_letters.iter().enumerate() {
            let outcome = match self.send(vec![self.record(dead_letter)]).await {
                Err(error @ kafka::Error::RecordRejected(_)) => {
                    let DeadLetter { partition, offset, .. } = dead_letter;
                    let without_content = self.send(vec![self.record(&without_content(dead_letter))]).await;
                    if without_content.is_ok() {
                        tracing::error!(partition, offset, %error, "a dead letter is rejected by its topic; the record is on the topic of events only");
                    }
                    without_content
                }
                outcome => outcome,
            };
            if outcome.is_err() {
                return (sent, outcome);
            }
        }
        (dead_letters.len(), Ok(()))
    }

    async fn send(&mut self, records: Vec<Record>) -> Result<(), kafka::Error> {
        let results = self.producer.send(BTreeMap::from([(0, records)])).await;
        results.into_values().try_for_each(|result| result.map(drop))
    }

    fn record(&self, letter: &DeadLetter) -> Record {
        let DeadLetter { partition, offset, key, value, headers, error } = letter;
        let origin = Origin { topic: self.settings.topic.clone(), partition: *partition, offset: *offset };
        let headers = dead_letter::add_headers(headers.clone(), &origin, error);
        Record { key: key.clone(), value: value.clone(), headers, timestamp: Utc::now() }
    }
}

/// What a topic can take that rejects the content.
fn without_content(dead_letter: &DeadLetter) -> DeadLetter {
    let DeadLetter { partition, offset, error, .. } = dead_letter;
    DeadLetter {
        partition: *partition,
        offset: *offset,
        // A compacted topic needs a key. With the original's, which may have none, a record without a value would delete that
        // key's other dead letters, and the patient's events if it is sent again.
        key: Some(format!("{partition}-{offset}").into_bytes()),
        value: None,
        headers: Vec::new(),
        error: format!("{error}; the dead letter topic rejects its content, which is on the topic of events only"),
    }
}
