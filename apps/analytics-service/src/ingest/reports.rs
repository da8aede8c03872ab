//! What keeps ingest from its work, for the log and for health.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
};

use telemetry::Outage;

use super::{Ingest, STATE_RECOVERY};
use crate::state::StateError;

/// Failures in a row after which the log says so, where the first ones are expected: a cluster needs a moment to make the topic of
/// its first group, and members that join at the same time begin further generations.
pub(super) const LOGGED_FAILURES: u32 = 3;

/// What keeps events from being counted, and progress from being shown, for the log. Clones of [`Ingest`] share it.
#[derive(Debug, Default)]
pub(super) struct Outages {
    pub(super) state: Outage,
    pub(super) kafka: Outage,
    /// No room for dead letters.
    pub(super) dead_letters: Outage,
    /// The progress is not committed to the group.
    pub(super) progress: Outage,
    /// What the other members have committed is not known.
    pub(super) standbys: Outage,
}

/// Says what no instance can see when partitions were added: each has some of the events of a patient whose key has moved.
pub(super) fn report_moved_keys() {
    tracing::warn!(
        "patients whose later events are on an added partition count twice, if another instance has their previous partition"
    );
}

impl Ingest {
    /// Reports the end of an outage of the state once the state has worked for [`STATE_RECOVERY`]. Never ends. That it was opened
    /// shows too little: a full disk often has room for the page that opening it writes.
    pub(super) async fn confirm_recovery<T>(&self) -> T {
        if self.read_model.read(|snapshot| snapshot.state_error.is_some()) {
            smol::Timer::after(STATE_RECOVERY).await;
            // A transaction in flight holds it, and may fail yet; then this future is dropped.
            let _ = self.state.with(async |_| Ok(())).await;
            self.report_state(None);
        }
        pending().await
    }

    pub(super) fn report_state(&self, error: Option<StateError>) {
        let error = error.map(|error| error.to_string());
        if self.read_model.read(|snapshot| snapshot.state_error == error) {
            return;
        }
        match &error {
            Some(error) if self.outages.state.failed(error) => {
                tracing::error!(error, "the state cannot be used; nothing is counted until it can");
            }
            Some(_) => {}
            None => {
                if let Some(lasted) = self.outages.state.recovered() {
                    tracing::info!(lasted_ms = lasted.as_millis() as u64, "the state can be used again");
                }
            }
        }
        self.read_model.change(|snapshot| snapshot.state_error = error);
    }

    /// Reports that Kafka cannot be read for a partition, or for the topic as a whole, or that it can again.
    pub(super) fn report_kafka(&self, reader: Option<i32>, error: Option<String>) {
        // The usual case: nothing to report, also while another partition cannot be read. A change wakes every stream.
        if self.read_model.read(|snapshot| snapshot.kafka_errors.get(&reader) == error.as_ref()) {
            return;
        }
        self.update_kafka_errors(|errors| match error {
            Some(error) => drop(errors.insert(reader, error)),
            None => drop(errors.remove(&reader)),
        });
    }

    /// Replaces the topic's error by one of each assigned partition, which lasts until the partition's first successful
    /// fetch. Those of partitions that are not assigned end, because nothing here fetches them any more.
    pub(super) fn assign_kafka_error(&self, partitions: &BTreeSet<i32>) {
        if self.read_model.read(|snapshot| snapshot.kafka_errors.is_empty()) {
            return;
        }
        self.update_kafka_errors(|errors| {
            errors.retain(|reader, _| reader.is_none_or(|partition| partitions.contains(&partition)));
            if let Some(error) = errors.remove(&None) {
                errors.extend(partitions.iter().map(|partition| (Some(*partition), error.clone())));
            }
        });
    }

    /// Ends the errors of partitions that this instance does not have any more.
    pub(super) fn drop_kafka_errors(&self, partitions: &BTreeSet<i32>) {
        let is_of = |reader: &Option<i32>| reader.is_some_and(|partition| partitions.contains(&partition));
        if self.read_model.read(|snapshot| snapshot.kafka_errors.keys().any(is_of)) {
            self.update_kafka_errors(|errors| errors.retain(|reader, _| !is_of(reader)));
        }
    }

    /// Logs when an outage begins, with the first error, and when it ends, with the last.
    fn update_kafka_errors(&self, change: impl FnOnce(&mut BTreeMap<Option<i32>, String>)) {
        let mut error = None;
        self.read_model.change(|snapshot| {
            change(&mut snapshot.kafka_errors);
            error = snapshot.kafka_errors.values().next().cloned();
        });
        match error {
            Some(error) if self.outages.kafka.failed("unreadable") => {
                tracing::warn!(error, "events cannot be read; they wait on the topic");
            }
            Some(_) => {}
            None => {
                if let Some(lasted) = self.outages.kafka.recovered() {
                    tracing::info!(lasted_ms = lasted.as_millis() as u64, "events can be read again");
                }
            }
        }
    }

    /// Reports that the progress of other members was read, or the next failure.
    pub(super) fn report_standbys(&self, failures: &mut u32, error: Option<&kafka::Error>) {
        let group = self.settings.group.0.as_deref();
        let Some(error) = error else {
            *failures = 0;
            if let Some(lasted) = self.outages.standbys.recovered() {
                let lasted_ms = lasted.as_millis() as u64;
                tracing::info!(lasted_ms, group, "copies of other members' partitions are read again");
            }
            return;
        };
        *failures += 1;
        if *failures >= LOGGED_FAILURES && self.outages.standbys.failed(&error.cause()) {
            tracing::warn!(
                %error,
                group,
                "what other members have committed to the consumer group cannot be read; copies of their partitions wait"
            );
        }
    }

    /// Reports that the progress was committed to the group, or the next failure.
    pub(super) fn report_progress(&self, failures: &mut u32, error: Option<&kafka::Error>) {
        let group = self.settings.group.0.as_deref();
        match error {
            None => {
                *failures = 0;
                if let Some(lasted) = self.outages.progress.recovered() {
                    let lasted_ms = lasted.as_millis() as u64;
                    tracing::info!(lasted_ms, group, "the progress is committed to the consumer group again");
                }
            }
            Some(error) => {
                *failures += 1;
                if *failures >= LOGGED_FAILURES && self.outages.progress.failed(&error.cause()) {
                    tracing::warn!(%error, group, "the progress is not committed to the consumer group; events are counted");
                }
            }
        }
    }
}
