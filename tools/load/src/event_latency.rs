//! From POST until analytics has applied the patient's event.
//!
//! The topic tells which offset each patient's event has; the summary of analytics, asked every few milliseconds, tells
//! which offsets have been applied. Both are kept with their times and put together after the run, so that looking late
//! at one of them changes nothing. A time is at most one look too long, and never too short.

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

/// How often the summary is asked for.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Time for a call.
const LIMIT: Duration = Duration::from_secs(5);
const FETCH_BYTES: i32 = 1024 * 1024;
const FETCH_WAIT: Duration = Duration::from_millis(500);

/// Follows the events of a run.
#[derive(Debug)]
pub(crate) struct Follower {
    seen: Arc<Mutex<Observations>>,
    tasks: Vec<Task<Result<(), String>>>,
}

#[derive(Debug, Default)]
struct Observations {
    /// Partition and offset of the event that each patient began with.
    published: HashMap<Uuid, (i32, i64)>,
    /// For each partition, the last offset applied, and when it was first seen to be.
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

impl Follower {
    /// Follows what is published from now on.
    ///
    /// # Errors
    /// If the topic cannot be read.
    pub(crate) async fn start(kafka: HostPort, topic: &str, analytics: Arc<Target>) -> Result<Self, String> {
        let settings = kafka::Settings { bootstrap: HostPorts(vec![kafka]), deadline: LIMIT, client_id: "load" };
        let failed = |error: kafka::Error| format!("the topic {topic} cannot be read: {error}");
        let seen = Arc::<Mutex<Observations>>::default();
        let mut tasks = Vec::new();
        for partition in 0..kafka::partitions(&settings, topic).await.map_err(failed)? {
            let mut consumer = Consumer::new(settings.clone(), topic, partition);
            let end = consumer.offsets().await.map_err(failed)?.end;
            tasks.push(runtime::spawn(read(consumer, end, seen.clone())));
        }
        tasks.push(runtime::spawn(look(Connection::new(analytics, LIMIT), seen.clone())));
        Ok(Self { seen, tasks })
    }

    /// Waits until all these patients' events have been applied, or the time is over, and gives when each was.
    ///
    /// # Errors
    /// If they could not be followed.
    pub(crate) async fn finish(
        self,
        patients: impl Iterator<Item = Uuid> + Clone,
        limit: Duration,
    ) -> Result<HashMap<Uuid, Instant>, String> {
        let give_up = Instant::now() + limit;
        loop {
            if let Some(failed) = self.tasks.iter().position(Task::is_finished) {
                let error = self.tasks.into_iter().nth(failed).expect("it was found there").await;
                return Err(error.err().unwrap_or_default());
            }
            let (times, complete) = self.lock().applied_at(patients.clone());
            if complete || Instant::now() > give_up {
                return Ok(times);
            }
            smol::Timer::after(POLL_INTERVAL * 10).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Observations> {
        lock(&self.seen)
    }
}

fn lock(seen: &Mutex<Observations>) -> std::sync::MutexGuard<'_, Observations> {
    // Nothing can panic while it is held.
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observations {
    fn applied_up_to(&mut self, partition: i32, offset: i64, now: Instant) {
        let times = self.applied.entry(partition).or_default();
        if times.last().is_none_or(|(last, _)| offset > *last) {
            times.push((offset, now));
        }
    }

    /// When each patient's event was seen to be applied, and whether all were.
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

/// Notes the offset of each patient's first event.
async fn read(mut consumer: Consumer, mut next: i64, seen: Arc<Mutex<Observations>>) -> Result<(), String> {
    loop {
        let fetched = consumer.fetch(next, FETCH_BYTES, FETCH_WAIT).await.map_err(|error| error.to_string())?;
        next = fetched.next;
        let mut seen = lock(&seen);
        for record in fetched.records.iter() {
            let event = record.value.and_then(|value| ReceivedEvent::decode(value).ok());
            if let Some(event) = event.filter(|event| event.kind == Some(EventKind::Created)) {
                seen.published.entry(event.patient_id).or_insert((consumer.partition(), record.offset));
            }
        }
    }
}

/// Notes which offsets have been applied.
async fn look(mut analytics: Connection, seen: Arc<Mutex<Observations>>) -> Result<(), String> {
    loop {
        let answer = analytics.send(Method::GET, "/analytics/summary", None).await;
        let answer = answer.map_err(|error| format!("the summary of analytics: {error}"))?;
        let now = Instant::now();
        let summary: Summary =
            serde_json::from_slice(&answer.body).map_err(|error| format!("the summary of analytics: {error}"))?;
        for Position { partition, applied_offset } in summary.partitions {
            lock(&seen).applied_up_to(partition, applied_offset, now);
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
        let mut seen = Observations::default();
        seen.applied_up_to(0, 4, at(0));
        seen.applied_up_to(0, 5, at(10));
        seen.applied_up_to(0, 5, at(20));
        seen.applied_up_to(0, 9, at(30));
        // The topic may be read later than the summary.
        seen.published = HashMap::from([(one, (0, 5)), (two, (0, 6)), (three, (0, 10))]);
        let (times, complete) = seen.applied_at([one, two].into_iter());
        assert_eq!((times, complete), (HashMap::from([(one, at(10)), (two, at(30))]), true));
        let (times, complete) = seen.applied_at([three, Uuid::now_v7()].into_iter());
        assert_eq!((times.len(), complete), (0, false));
    }
}
