use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::Event;

/// Wakes one task. Notifications before the task waits are remembered as one, as with tokio's `Notify::notify_one`.
#[derive(Debug, Default)]
pub struct Notify {
    pending: AtomicBool,
    event: Event,
}

impl Notify {
    /// No notification is pending.
    pub const fn new() -> Self {
        Self { pending: AtomicBool::new(false), event: Event::new() }
    }

    /// Notifies the task. Never blocks.
    pub fn notify(&self) {
        // A second pending notification adds nothing.
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.event.notify(1);
        }
    }

    /// Waits for a notification; returns at once if there was one since the last call.
    pub async fn wait(&self) {
        while !self.pending.swap(false, Ordering::AcqRel) {
            let listener = self.event.listen();
            // A notification may have come between the check and the registration.
            if self.pending.load(Ordering::Acquire) {
                continue;
            }
            listener.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_is_not_lost_and_not_counted_twice() {
        smol::block_on(async {
            let notify = Notify::new();
            notify.notify();
            notify.notify();
            notify.wait().await;
            let late = crate::timeout(std::time::Duration::from_millis(5), notify.wait()).await;
            assert!(late.is_err());
            let (waited, _) = futures_lite::future::zip(notify.wait(), async { notify.notify() }).await;
            assert_eq!(waited, ());
        });
    }
}
