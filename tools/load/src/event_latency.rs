//! From POST until analytics has applied the patient's event.
//!
//! The offset of each patient's event is read from the topic; which offsets have been applied is polled from the summary of
//! analytics-service every few milliseconds. Both are recorded with their times and joined after the run, so that it does not
//! matter which is read first. A latency is at most one poll interval too long, and never too short.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use codec::event::{EventKind, ReceivedEvent};
use config::{HostPort, HostPorts};
use hyper::Method;
use kafka::Consumer;
use serde::Deserialize;
use smol::Task;
use uuid::Uuid;

use crate::target::{Connection, Target};

/// Interval at which the summary is polled.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Timeout of a call.
const TIMEOUT: Duration = Duration::from_secs(5);
const FETCH_BYTES: i32 = 1024 * 1024;
const FETCH_WAIT: Duration = Duration::from_millis(500);

/// Observes the events of a run.
#[derive(Debug)]
pub(crate) struct EventFollower {
    observations: Arc<Mutex<Observations>>,
    tasks: Vec<Task<Result<(), String>>>,
}

#[derive(Debug, Default)]
struct Observations {
    /// Partition and offset of the first event of each patient.
    published: HashMap<Uuid, (i32, i64)>,
    /// For each partition, the applied offsets with the time of the first summary that had them.
    applied: BTreeMap<i32, Vec<(i64, Instant)>>,
}

#[derive(Deserialize)]
struct Summary {
    partitions: Vec<Position>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Position {
    partition: i32,
    applied_offset: i64,
}

impl EventFollower {
    /// Observes the events that are published from now on.
    ///
    /// # Errors
    /// If the topic cannot be read.
    pub(crate) async fn start(kafka: HostPort, topic: &str, analytics: Arc<Target>) -> Result<Self, String> {
        let security = kafka::Security::default();
        let settings =
            kafka::Settings { bootstrap: HostPorts(vec![kafka]), deadline: TIMEOUT, client_id: "load", security };
        let failed = |error: kafka::Error| format!("the topic {topic} cannot be read: {error}");
        let observations = Arc::<Mutex<Observations>>::default();
        let mut tasks = Vec::new();
        for partition in 0..kafka::partitions(&settings, topic).await.map_err(failed)? {
            let mut consumer = Consumer::new(settings.clone(), topic, partition);
            let end = consumer.offsets().await.map_err(failed)?.end;
            tasks.push(runtime::spawn(read_topic(consumer, end, observations.clone())));
        }
        tasks.push(runtime::spawn(poll_summary(Connection::new(analytics, TIMEOUT), observations.clone())));
        Ok(Self { observations, tasks })
    }

    /// Waits until the events of all these patients have been applied, for at most `limit`; returns when each was.
    ///
    /// # Errors
    /// If the topic or the summary cannot be read.
    pub(crate) async fn finish(
        self,
        patients: impl Iterator<Item = Uuid> + Clone,
        limit: Duration,
    ) -> Result<HashMap<Uuid, Instant>, String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(failed) = self.tasks.iter().position(Task::is_finished) {
                let error = self.tasks.into_iter().nth(failed).expect("it was found there").await;
                return Err(error.err().unwrap_or_default());
            }
            let (times, complete) = self.lock().applied_at(patients.clone());
            if complete || Instant::now() > end {
                return Ok(times);
            }
            smol::Timer::after(POLL_INTERVAL * 10).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Observations> {
        lock(&self.observations)
    }
}

fn lock(observations: &Mutex<Observations>) -> std::sync::MutexGuard<'_, Observations> {
    // Nothing can panic while it is held.
    observations.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observations {
    fn applied_up_to(&mut self, partition: i32, offset: i64, now: Instant) {
        let times = self.applied.entry(partition).or_default();
        if times.last().is_none_or(|(last, _)| offset > *last) {
            times.push((offset, now));
        }
    }

    /// When the event of each patient was applied, and whether all were.
    fn applied_at(&self, patients: impl Iterator<Item = Uuid>) -> (HashMap<Uuid, Instant>, bool) {
        let mut complete = true;
        let mut found = HashMap::new();
        for patient in patients {
            let time = self.published.get(&patient).and_then(|(partition, offset)| {
                let times = self.applied.get(partition)?;
                let first = times.partition_point(|(applied, _)| applied < offset);
                times.get(first).map(|(_, time)| *time)
            });
            match time {
                Some(time) => drop(found.insert(patient, time)),
                None => complete = false,
            }
        }
        (found, complete)
    }
}

/// Records the offset of each patient's first event.
async fn read_topic(
    mut consumer: Consumer,
    mut next: i64,
    observations: Arc<Mutex<Observations>>,
) -> Result<(), String> {
    loop {
        let fetched = consumer.fetch(next, FETCH_BYTES, FETCH_WAIT).await.map_err(|error| error.to_string())?;
        next = fetched.next;
        let mut observations = lock(&observations);
        for record in fetched.records.iter() {
            let event = record.value.and_then(|value| ReceivedEvent::decode(value).ok());
            if let Some(event) = event.filter(|event| event.kind == Some(EventKind::Created)) {
                observations.published.entry(event.patient_id).or_insert((consumer.partition(), record.offset));
            }
        }
    }
}

/// Records which offsets have been applied.
async fn poll_summary(mut analytics: Connection, observations: Arc<Mutex<Observations>>) -> Result<(), String> {
    loop {
        let response = analytics.send(Method::GET, "/analytics/summary", None).await;
        let response = response.map_err(|error| format!("the summary of analytics: {error}"))?;
        let now = Instant::now();
        let summary: Summary =
            serde_json::from_slice(&response.body).map_err(|error| format!("the summary of analytics: {error}"))?;
        for Position { partition, applied_offset } in summary.partitions {
            lock(&observations).applied_up_to(partition, applied_offset, now);
        }
        smol::Timer::after(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_as_applied_at_the_first_summary_that_has_it() {
        let (one, two, three) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut observations = Observations::default();
        observations.applied_up_to(0, 4, at(0));
        observations.applied_up_to(0, 5, at(10));
        observations.applied_up_to(0, 5, at(20));
        observations.applied_up_to(0, 9, at(30));
        // The topic may be read later than the summary.
        observations.published = HashMap::from([(one, (0, 5)), (two, (0, 6)), (three, (0, 10))]);
        let (times, complete) = observations.applied_at([one, two].into_iter());
        assert_eq!((times, complete), (HashMap::from([(one, at(10)), (two, at(30))]), true));
        let (times, complete) = observations.applied_at([three, Uuid::now_v7()].into_iter());
        assert_eq!((times.len(), complete), (0, false));
    }
}
