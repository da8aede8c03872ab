//! From the state to the topic of dead letters: with the original bytes, and with headers that say why and from where.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::Utc;
use codec::dead_letter::{Origin, of_letter};
use kafka::{Producer, Record};
use runtime::{Backoff, Notify, Shutdown, timeout};

use crate::{
    read_model::ReadModel,
    settings::Settings,
    state::{DeadLetter, Parked, SharedState, State},
};

/// Letters that are forwarded with one batch.
const AT_ONCE: i64 = 20;
/// Bytes that they have together, unless the first alone has more: about as many as a broker takes in one batch.
const BYTES_AT_ONCE: i64 = 1024 * 1024;
/// Poll interval for dead letters of an earlier run, which wake nobody.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Pauses after failures.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Forwards dead letters.
#[derive(Debug)]
pub struct Forwarder {
    state: Arc<SharedState>,
    settings: Settings,
    read_model: ReadModel,
    producer: Producer,
}

impl Forwarder {
    /// A forwarder of the letters in this state; the view shows whether it can.
    pub fn new(state: Arc<SharedState>, settings: Settings, read_model: ReadModel) -> Self {
        let producer = Producer::new(settings.kafka.clone(), &settings.dead_letter_topic);
        Self { state, settings, read_model, producer }
    }

    /// Forwards until the shutdown. `wake` cuts the pauses short.
    pub async fn run(mut self, wake: Arc<Notify>, shutdown: Shutdown) {
        let work = async {
            let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
            let mut failing = false;
            loop {
                let step = self.step().await;
                self.show(&step);
                match step {
                    Ok(0) => {
                        let _ = timeout(POLL_INTERVAL, wake.wait()).await;
                    }
                    Ok(forwarded) => {
                        tracing::info!(forwarded, "dead letters forwarded");
                        backoff.reset();
                        failing = false;
                    }
                    Err(error) => {
                        if !failing {
                            tracing::warn!(%error, "dead letters cannot be forwarded; they wait in the state");
                        }
                        failing = true;
                        backoff.pause().await;
                    }
                }
            }
        };
        shutdown.run_until_stopped(work).await;
    }

    /// Shows what became of a step, also to whoever waits for room in the state.
    fn show(&self, step: &Result<usize, kafka::Error>) {
        let trouble = step.as_ref().err().map(ToString::to_string);
        if matches!(step, Ok(1..)) || self.read_model.read(|snapshot| snapshot.dead_letters.trouble != trouble) {
            self.read_model.change(&self.settings.topic, |snapshot| snapshot.dead_letters.trouble = trouble);
        }
    }

    /// Forwards the oldest letters; gives how many.
    ///
    /// # Errors
    /// If the broker cannot take them now.
    pub async fn step(&mut self) -> Result<usize, kafka::Error> {
        // A state that is not open is opened by ingest, which also says so.
        let waiting = async |state: &mut State| state.waiting_dead_letters(AT_ONCE, BYTES_AT_ONCE).await;
        let Ok(letters) = self.state.with(waiting).await else { return Ok(0) };
        let Some(last) = letters.last().map(|letter| letter.id) else { return Ok(0) };
        match self.send(letters.iter().map(|letter| self.record(&letter.letter)).collect()).await {
            Ok(()) => {}
            // One of them is too large for the topic: the others go one by one.
            Err(kafka::Error::Refused(_)) => self.send_each(&letters).await?,
            Err(kafka::Error::UnknownTopic) => {
                kafka::create_topic(&self.settings.kafka, &self.settings.dead_letter_topic, 1).await?;
                return Ok(0);
            }
            Err(error) => return Err(error),
        }
        // If this fails, they will be on the topic twice.
        let _ = self.state.with(async |state| state.forwarded(last).await).await;
        Ok(letters.len())
    }

    async fn send_each(&mut self, letters: &[Parked]) -> Result<(), kafka::Error> {
        for Parked { letter, .. } in letters {
            match self.send(vec![self.record(letter)]).await {
                Err(error @ kafka::Error::Refused(_)) => {
                    let DeadLetter { partition, offset, .. } = letter;
                    tracing::error!(partition, offset, %error, "a dead letter stays on its topic only");
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    async fn send(&mut self, records: Vec<Record>) -> Result<(), kafka::Error> {
        let results = self.producer.send(BTreeMap::from([(0, records)])).await;
        results.into_values().try_for_each(|result| result.map(drop))
    }

    fn record(&self, letter: &DeadLetter) -> Record {
        let DeadLetter { partition, offset, key, value, headers, error } = letter;
        let origin = Origin { topic: self.settings.topic.clone(), partition: *partition, offset: *offset };
        let headers = of_letter(headers.clone(), &origin, error);
        Record { key: key.clone(), value: value.clone(), headers, timestamp: Utc::now() }
    }
}
