use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use event_listener::{Event, EventListener};

/// Whether the partitions of this instance may be counted. A transaction begins only while it is open.
///
/// A member of the consumer group that cannot reach the coordinator does not know whether its partitions are still its own: it is
/// sure until the session timeout after its last heartbeat, and no longer.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Event,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GateState {
    Open,
    OpenUntil(Instant),
    Closed,
}

impl Gate {
    /// Open for ever: the partitions are assigned by settings.
    pub(super) fn open() -> Self {
        Self::new(GateState::Open)
    }

    /// Not open yet: before the first heartbeat of a generation.
    pub(super) fn before_first_heartbeat() -> Self {
        Self::new(GateState::OpenUntil(Instant::now()))
    }

    fn new(state: GateState) -> Self {
        Self { state: Mutex::new(state), changed: Event::new() }
    }

    /// Opens it until then.
    pub(super) fn extend(&self, until: Instant) {
        self.set(GateState::OpenUntil(until));
    }

    /// Closes it for ever: the generation is over.
    pub(super) fn close(&self) {
        self.set(GateState::Closed);
    }

    /// Waits until it is open, and returns true, or closed for ever, and returns false.
    pub(super) async fn pass(&self) -> bool {
        loop {
            let changed = self.changed();
            match *self.lock() {
                GateState::Open => return true,
                GateState::OpenUntil(until) if Instant::now() < until => return true,
                GateState::OpenUntil(_) => {}
                GateState::Closed => return false,
            }
            changed.await;
        }
    }

    /// Waits until it is closed for ever.
    pub(super) async fn closed(&self) {
        loop {
            let changed = self.changed();
            if *self.lock() == GateState::Closed {
                return;
            }
            changed.await;
        }
    }

    fn changed(&self) -> EventListener {
        self.changed.listen()
    }

    fn set(&self, state: GateState) {
        *self.lock() = state;
        self.changed.notify(usize::MAX);
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smol::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn nobody_passes_after_the_last_heartbeat_has_expired_until_the_next() {
        block_on(async {
            assert!(Gate::open().pass().await);
            let gate = Gate::before_first_heartbeat();
            let mut waiting = Box::pin(gate.pass());
            assert_eq!(poll_once(&mut waiting).await, None);
            gate.extend(Instant::now() + Duration::from_secs(3600));
            assert!(waiting.await && gate.pass().await);
            gate.extend(Instant::now());
            let mut waiting = Box::pin(gate.pass());
            assert_eq!(poll_once(&mut waiting).await, None, "it has expired");
            let mut closed = Box::pin(gate.closed());
            assert_eq!(poll_once(&mut closed).await, None);
            gate.close();
            assert!(!waiting.await);
            closed.await;
        });
    }
}
