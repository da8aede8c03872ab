use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_signal::{Signal, Signals};
use event_listener::Event;
use futures_lite::{StreamExt as _, future::or};
use futures_util::FutureExt as _;

/// A cancellation token: once it is triggered, its holders finish their work and end. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    triggered: AtomicBool,
    event: Event,
}

impl Shutdown {
    /// A token that is not triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Triggers the shutdown. Further calls have no effect.
    pub fn trigger(&self) {
        self.inner.triggered.store(true, Ordering::Release);
        self.inner.event.notify(usize::MAX);
    }

    /// Whether it has been triggered.
    pub fn is_triggered(&self) -> bool {
        self.inner.triggered.load(Ordering::Acquire)
    }

    /// Waits until it is triggered; returns at once if it was.
    pub async fn wait(&self) {
        while !self.is_triggered() {
            let listener = self.inner.event.listen();
            // It may have been triggered between the check and the registration.
            if !self.is_triggered() {
                listener.await;
            }
        }
    }

    /// Runs `work` until it ends or the shutdown is triggered; in the second case drops it and returns `None`.
    pub fn run_until_stopped<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
        // As in `timeout`, the work is held once.
        or(self.wait().map(|()| None), work.map(Some))
    }

    /// Triggers on the first SIGTERM or SIGINT; the second ends the process at once, with the shell's exit code for it.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn trigger_on_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::new([Signal::Term, Signal::Int])?;
        let shutdown = self.clone();
        let watch = async move {
            while let Some(Ok(signal)) = signals.next().await {
                if shutdown.is_triggered() {
                    tracing::warn!(?signal, "ended at once by a second signal");
                    telemetry::log::flush();
                    process::exit(128 + signal as i32);
                }
                tracing::info!(?signal, "stopping");
                shutdown.trigger();
            }
        };
        crate::spawn(watch).detach();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shutdown_wakes_every_waiter() {
        let shutdown = Shutdown::new();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                smol::spawn({
                    let s = shutdown.clone();
                    async move { s.wait().await }
                })
            })
            .collect();
        assert!(!shutdown.is_triggered());
        shutdown.trigger();
        smol::block_on(async {
            for waiter in waiters {
                waiter.await;
            }
            shutdown.wait().await;
            assert_eq!(shutdown.run_until_stopped(std::future::pending::<()>()).await, None);
        });
    }
}
