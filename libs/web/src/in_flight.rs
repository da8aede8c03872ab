//! The limit of requests that are handled at once.

use std::{
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use telemetry::{
    Outage,
    metrics::{self, IntGauge},
};

use crate::Problem;

static IN_FLIGHT: LazyLock<IntGauge> = LazyLock::new(|| {
    metrics::gauge("http_requests_in_flight", "HTTP requests being handled, without those for health and metrics.")
});

/// `Retry-After` of an overloaded service.
const OVERLOAD_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The requests being handled, and how many may be.
#[derive(Default)]
pub(crate) struct InFlight {
    count: AtomicUsize,
    limit: usize,
    overload: Outage,
}

impl InFlight {
    /// Nothing is in flight, and `limit` may be.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= self.limit
    }

    fn enter(self: &Arc<Self>) -> Result<InFlightGuard, Problem> {
        let is_free = self.count.fetch_add(1, Ordering::Relaxed) < self.limit;
        // It is decremented on drop in either case.
        let entered = InFlightGuard { in_flight: self.clone(), _gauge: metrics::track(&IN_FLIGHT) };
        if is_free { Ok(entered) } else { Err(self.reject()) }
    }

    pub(crate) fn reject(&self) -> Problem {
        if self.overload.failed("full") {
            tracing::warn!(limit = self.limit, "too many requests in flight; more are rejected");
        }
        overloaded()
    }
}

/// 503 for a request that there is no room for.
pub(crate) fn overloaded() -> Problem {
    Problem::unavailable("The service is at its limit.", OVERLOAD_RETRY_AFTER)
}

/// A request that counts as in flight.
struct InFlightGuard {
    in_flight: Arc<InFlight>,
    _gauge: metrics::GaugeGuard,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let InFlight { count, limit, overload } = &*self.in_flight;
        let left = count.fetch_sub(1, Ordering::Relaxed) - 1;
        // At half of the limit, because at the limit itself an overload would begin and end many times a second.
        if left <= limit / 2
            && let Some(lasted) = overload.recovered()
        {
            tracing::info!(lasted_ms = lasted.as_millis() as u64, "requests are accepted again");
        }
    }
}

/// Counts a request as in flight from the start of its handling: at once if it has no body, else when
/// [`read_body`](crate::read_body) has read it. It is released when the last clone is dropped.
pub(crate) struct InFlightSlot {
    in_flight: Arc<InFlight>,
    entered: Mutex<Option<InFlightGuard>>,
}

impl InFlightSlot {
    pub(crate) fn of(in_flight: &Arc<InFlight>) -> Self {
        Self { in_flight: in_flight.clone(), entered: Mutex::default() }
    }

    /// Counts the request, once.
    ///
    /// # Errors
    /// 503 above the limit.
    pub(crate) fn take(&self) -> Result<(), Problem> {
        let mut entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
        if entered.is_none() {
            *entered = Some(self.in_flight.enter()?);
        }
        Ok(())
    }
}
