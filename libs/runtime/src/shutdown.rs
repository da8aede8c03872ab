use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_signal::{Signal, Signals};
use event_listener::Event;
use futures_lite::StreamExt as _;

/// The token that says "finish what you do and end". Clones share one state.
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
    /// A token that nobody has triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells every holder to finish. Further calls change nothing.
    pub fn trigger(&self) {
        self.inner.triggered.store(true, Ordering::Release);
        self.inner.event.notify(usize::MAX);
    }

    /// Whether it has been triggered.
    pub fn is_triggered(&self) -> bool {
        self.inner.triggered.load(Ordering::Acquire)
    }

    /// Ends when it is triggered; at once if it has been.
    pub async fn wait(&self) {
        while !self.is_triggered() {
            let listener = self.inner.event.listen();
            // Between the check and the registration it may have been triggered unseen.
            if !self.is_triggered() {
                listener.await;
            }
        }
    }

    /// Gives the result of `work`, or nothing if the shutdown comes first; then the work is dropped.
    pub async fn run_until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let stop = async {
            self.wait().await;
            None
        };
        futures_lite::future::or(stop, async { Some(work.await) }).await
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
    fn every_waiter_ends() {
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
