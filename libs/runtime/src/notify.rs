use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::Event;

/// A tap on the shoulder of one task: "there is something for you". Many taps before the task looks are one.
#[derive(Debug, Default)]
pub struct Notify {
    pending: AtomicBool,
    event: Event,
}

impl Notify {
    /// Nobody has tapped yet.
    pub const fn new() -> Self {
        Self { pending: AtomicBool::new(false), event: Event::new() }
    }

    /// Taps. Never waits.
    pub fn notify(&self) {
        // A tap that finds one pending has nothing to add.
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.event.notify(1);
        }
    }

    /// Ends with the next tap; at once if there was one since the last call.
    pub async fn wait(&self) {
        while !self.pending.swap(false, Ordering::AcqRel) {
            let listener = self.event.listen();
            // Between the check and the registration it may have come unseen.
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
    fn a_tap_is_not_lost_and_not_counted_twice() {
        smol::block_on(async {
            let wake = Notify::new();
            wake.notify();
            wake.notify();
            wake.wait().await;
            let late = crate::timeout(std::time::Duration::from_millis(5), wake.wait()).await;
            assert!(late.is_err());
            let (waited, _) = futures_lite::future::zip(wake.wait(), async { wake.notify() }).await;
            assert_eq!(waited, ());
        });
    }
}
