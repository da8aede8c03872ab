//! What there is of load: a fixed rate for a bounded time, and what came of it so far.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use runtime::Shutdown;
use serde::Serialize;

use crate::time::iso;

/// Registrations a second, and seconds, at most.
pub(crate) const MAX_RATE: u32 = 200;
pub(crate) const MAX_SECONDS: u64 = 60;
/// Registrations under way at most; one that finds no room counts as failed.
const MAX_WAITING: usize = 64;

/// The load. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    inner: Arc<Mutex<Option<Running>>>,
}

#[derive(Debug)]
struct Running {
    rate: u32,
    until: SystemTime,
    stop: Shutdown,
    is_over: bool,
    sent: u64,
    failed: u64,
    waiting: usize,
    /// Of those answered 201, in microseconds.
    latencies: Vec<u32>,
}

/// The load as the page shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LoadBody {
    rate: u32,
    until: String,
    running: bool,
    sent: u64,
    answered: usize,
    failed: u64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

impl LoadBody {
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }
}

impl Load {
    /// Begins; gives what ends it. None if there is load already.
    pub(crate) fn begin(&self, rate: u32, seconds: u64) -> Option<Shutdown> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.as_ref().is_some_and(|running| !running.is_over) {
            return None;
        }
        let (stop, until) = (Shutdown::new(), SystemTime::now() + Duration::from_secs(seconds));
        *inner = Some(Running {
            rate,
            until,
            stop: stop.clone(),
            is_over: false,
            sent: 0,
            failed: 0,
            waiting: 0,
            latencies: Vec::new(),
        });
        Some(stop)
    }

    /// Asks it to end now.
    pub(crate) fn stop(&self) {
        self.with(|running| running.stop.trigger());
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        self.with(|running| running.is_over = true);
    }

    /// Counts one to be sent; false if there is no room for it.
    pub(crate) fn send(&self) -> bool {
        let has_room = self.with(|running| {
            running.sent += 1;
            let has_room = running.waiting < MAX_WAITING;
            running.waiting += usize::from(has_room);
            running.failed += u64::from(!has_room);
            has_room
        });
        has_room.unwrap_or_default()
    }

    /// Notes the answer to one: how long it took, if it was the right one.
    pub(crate) fn answered(&self, took: Option<Duration>) {
        self.with(|running| {
            running.waiting = running.waiting.saturating_sub(1);
            match took {
                Some(took) => running.latencies.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX)),
                None => running.failed += 1,
            }
        });
    }

    /// The load that there is, or was last.
    pub(crate) fn body(&self) -> Option<LoadBody> {
        self.with(|running| {
            let mut sorted = running.latencies.clone();
            sorted.sort_unstable();
            let at = |share: f64| {
                let place = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
                sorted.get(place).map(|micros| f64::from(*micros) / 1e3)
            };
            LoadBody {
                rate: running.rate,
                until: iso(running.until),
                running: !running.is_over,
                sent: running.sent,
                answered: sorted.len(),
                failed: running.failed,
                p50_ms: at(0.5),
                p99_ms: at(0.99),
            }
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Running) -> T) -> Option<T> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change)
    }
}
