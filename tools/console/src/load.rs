//! The load from the lab: a fixed rate for a bounded time, with its results so far.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hdrhistogram::Histogram;
use runtime::Shutdown;
use serde::Serialize;

use crate::time::iso;

/// Registrations a second, and seconds, at most.
pub(crate) const MAX_RATE: u32 = 200;
pub(crate) const MAX_SECONDS: u64 = 60;
/// Most registrations in flight; one beyond them counts as failed.
const MAX_IN_FLIGHT: usize = 64;
/// The longest latency that is distinguished, in microseconds.
const MAX_LATENCY: u64 = 60_000_000;

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
    in_flight: usize,
    /// Of the successful ones, in microseconds.
    latencies: Histogram<u64>,
}

/// The load as the page shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LoadBody {
    rate: u32,
    until: String,
    running: bool,
    sent: u64,
    answered: u64,
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
    /// Starts; returns what stops it. None if there is load already.
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
            in_flight: 0,
            latencies: Histogram::new_with_bounds(1, MAX_LATENCY, 3).expect("the bounds are valid"),
        });
        Some(stop)
    }

    /// Stops it now.
    pub(crate) fn stop(&self) {
        self.with(|running| running.stop.trigger());
    }

    /// Marks it as ended.
    pub(crate) fn end(&self) {
        self.with(|running| running.is_over = true);
    }

    /// Counts a registration; false if too many are in flight.
    pub(crate) fn start_request(&self) -> bool {
        let has_room = self.with(|running| {
            running.sent += 1;
            let has_room = running.in_flight < MAX_IN_FLIGHT;
            running.in_flight += usize::from(has_room);
            running.failed += u64::from(!has_room);
            has_room
        });
        has_room.unwrap_or_default()
    }

    /// Records the end of a registration, with its latency if it succeeded.
    pub(crate) fn end_request(&self, latency: Option<Duration>) {
        self.with(|running| {
            running.in_flight = running.in_flight.saturating_sub(1);
            match latency {
                Some(latency) => running.latencies.saturating_record(latency.as_micros() as u64),
                None => running.failed += 1,
            }
        });
    }

    /// The current load, or the last one.
    pub(crate) fn body(&self) -> Option<LoadBody> {
        self.with(|running| {
            let latencies = &running.latencies;
            let quantile = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
            LoadBody {
                rate: running.rate,
                until: iso(running.until),
                running: !running.is_over,
                sent: running.sent,
                answered: latencies.len(),
                failed: running.failed,
                p50_ms: (!latencies.is_empty()).then(|| quantile(0.5)),
                p99_ms: (!latencies.is_empty()).then(|| quantile(0.99)),
            }
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Running) -> T) -> Option<T> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change)
    }
}
