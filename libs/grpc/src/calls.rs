//! The calls in flight, and the bounds on their memory.
//!
//! A call's request is incomplete at first, then it waits for a permit, then the service handles it, then the response is
//! sent. A client can prolong the first and the last phase at will, so neither holds a permit: they are counted apart, and
//! when there are too many, those that have waited for their client longest are evicted. Only complete requests take a
//! permit.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures_intrusive::sync::{Semaphore, SemaphoreReleaser};
use runtime::{Shutdown, timeout};
use tonic::Status;

use crate::{Limits, connections::Clock};

/// Bytes of a call beside its head and its request: its future, its stream and its task.
const OVERHEAD: usize = 8 * 1024;

/// Every call of a server.
pub(crate) struct Calls {
    limits: Limits,
    clock: Clock,
    /// Granted in the order of requests. smol's semaphore is not fair: at the limit, a client that sends calls without a pause
    /// would take each free permit before those that wait.
    permits: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Calls without a response, with the bytes of their requests.
    requests: HashMap<u64, (usize, Arc<Call>)>,
    /// Those of them with an incomplete request, oldest first.
    incomplete: BTreeSet<u64>,
    /// The bytes of all of these requests.
    bytes: usize,
    /// The bytes of all requests in memory: of these, and of evicted ones whose tasks have not ended yet.
    held: usize,
    /// Calls whose responses are being sent.
    responses: HashMap<u64, Arc<Call>>,
}

/// One call, as it is shared between the connection, the handler and [`Calls`].
#[derive(Default)]
pub(crate) struct Call {
    /// Triggered when its incomplete request is evicted for another one.
    pub(crate) evicted: Shutdown,
    /// Triggered when its response is aborted, because the client does not read it.
    pub(crate) aborted: Shutdown,
    /// When hyper last polled the response for a frame.
    polled_at: AtomicU64,
    /// Whether the client has to read before the next frame is polled for, rather than the service to produce it.
    awaits_client: AtomicBool,
}

impl Calls {
    pub(crate) fn new(limits: Limits, clock: Clock) -> Arc<Self> {
        let permits = Semaphore::new(true, limits.in_flight);
        Arc::new(Self { limits, clock, permits, state: Mutex::default() })
    }

    /// Registers a call whose request is incomplete, and whose head has these bytes.
    pub(crate) fn begin_request(self: &Arc<Self>, call: Arc<Call>, head: usize) -> Result<PendingRequest, Status> {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.requests.insert(id, (0, call));
        state.incomplete.insert(id);
        let mut pending = PendingRequest { id, held: 0, calls: self.clone() };
        let is_reserved = pending.reserve(&mut state, OVERHEAD + head);
        // Before `pending`, which takes the lock when it is dropped.
        drop(state);
        if is_reserved { Ok(pending) } else { Err(exhausted()) }
    }

    /// A permit to handle a complete request.
    pub(crate) async fn acquire_permit(&self) -> Result<SemaphoreReleaser<'_>, Status> {
        match self.permits.try_acquire(1) {
            Some(permit) => Ok(permit),
            None => {
                let permit = timeout(self.limits.queue_wait, self.permits.acquire(1));
                permit.await.map_err(|_| exhausted())
            }
        }
    }

    /// Registers a call whose response is being sent.
    pub(crate) fn begin_response(self: &Arc<Self>, call: Arc<Call>) -> PendingResponse {
        call.polled_at.store(self.clock.now(), Ordering::Relaxed);
        let mut state = self.lock();
        if state.responses.len() >= self.limits.responses {
            // Those first whose clients have something to read: a watcher of the health reads everything, and there is little.
            let age = |(id, call): (&u64, &Arc<Call>)| {
                (!call.awaits_client.load(Ordering::Relaxed), call.polled_at.load(Ordering::Relaxed), *id)
            };
            let slowest = state.responses.iter().map(age).min();
            if let Some(call) = slowest.and_then(|(_, _, id)| state.responses.remove(&id)) {
                call.aborted.trigger();
            }
        }
        let id = state.next;
        state.next += 1;
        state.responses.insert(id, call.clone());
        drop(state);
        PendingResponse { id, call, calls: self.clone() }
    }

    /// Aborts responses whose clients have read nothing for too long.
    pub(crate) fn abort_overdue(&self) {
        for call in self.lock().responses.values() {
            let polled_at = call.polled_at.load(Ordering::Relaxed);
            if call.awaits_client.load(Ordering::Relaxed) && self.clock.is_past(polled_at, self.limits.reader_wait) {
                call.aborted.trigger();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Reserves more bytes for a call, and evicts older incomplete requests if need be; false if there is no room, or the
    /// call itself was evicted.
    fn reserve(&mut self, id: u64, more: usize, limit: usize) -> bool {
        while self.bytes + more > limit {
            let oldest = self.incomplete.iter().copied().find(|other| *other != id);
            let Some((_, call)) = oldest.and_then(|oldest| self.remove(oldest)) else { return false };
            call.evicted.trigger();
        }
        let Some((bytes, _)) = self.requests.get_mut(&id) else { return false };
        *bytes += more;
        self.bytes += more;
        true
    }

    fn remove(&mut self, id: u64) -> Option<(usize, Arc<Call>)> {
        self.incomplete.remove(&id);
        self.requests.remove(&id).inspect(|(bytes, _)| self.bytes -= bytes)
    }
}

/// The memory of a call's request. Dropped when there is a response.
pub(crate) struct PendingRequest {
    id: u64,
    held: usize,
    calls: Arc<Calls>,
}

impl PendingRequest {
    /// More of the request has arrived.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), Status> {
        let calls = self.calls.clone();
        let is_reserved = self.reserve(&mut calls.lock(), more);
        if is_reserved { Ok(()) } else { Err(exhausted()) }
    }

    fn reserve(&mut self, state: &mut State, more: usize) -> bool {
        let limit = self.calls.limits.request_bytes;
        // The memory of an evicted request is free once its task has run, which may be after many more heads have arrived.
        if !state.reserve(self.id, more, limit) || state.held + more > limit + limit / 2 {
            return false;
        }
        state.held += more;
        self.held += more;
        true
    }

    /// The request is complete: it is not evicted any more.
    pub(crate) fn complete(&self) {
        self.calls.lock().incomplete.remove(&self.id);
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        let mut state = self.calls.lock();
        state.remove(self.id);
        state.held -= self.held;
    }
}

/// A response that is being sent. Dropped when it has ended.
pub(crate) struct PendingResponse {
    id: u64,
    call: Arc<Call>,
    calls: Arc<Calls>,
}

impl PendingResponse {
    /// hyper polls for the next frame: the client has read.
    pub(crate) fn polled(&self) {
        self.call.polled_at.store(self.calls.clock.now(), Ordering::Relaxed);
        self.call.awaits_client.store(false, Ordering::Relaxed);
    }

    /// hyper has the next frame.
    pub(crate) fn frame_sent(&self) {
        self.call.awaits_client.store(true, Ordering::Relaxed);
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        self.calls.lock().responses.remove(&self.id);
    }
}

/// The status of a call that there is no room for. The same call may succeed later.
pub(crate) fn exhausted() -> Status {
    Status::resource_exhausted("the service has too many calls in flight")
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn a_free_permit_belongs_to_the_call_that_has_waited_longest() {
        let calls = Calls::new(Limits { in_flight: 1, ..Limits::default() }, Clock::start());
        block_on(async {
            let held = calls.acquire_permit().await.unwrap();
            let mut first = pin!(calls.acquire_permit());
            assert!(poll_once(&mut first).await.is_none());
            drop(held);
            let mut later = pin!(calls.acquire_permit());
            assert!(poll_once(&mut later).await.is_none(), "another one waits");
            let held = poll_once(&mut first).await.expect("it is free").unwrap();
            drop(held);
            assert!(poll_once(&mut later).await.is_some());
        });
    }
}
