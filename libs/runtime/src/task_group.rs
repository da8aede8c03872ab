use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_lite::FutureExt as _;
use smol::Task;

use crate::{Shutdown, timeout};

/// The long-running tasks of a service. Each is expected to end once the shutdown is triggered; one that ends or
/// panics before that stops the whole service, because the others cannot replace it.
#[derive(Debug)]
pub struct TaskGroup {
    shutdown: Shutdown,
    tasks: Vec<(&'static str, Task<()>)>,
    failed: Arc<AtomicBool>,
}

impl TaskGroup {
    /// A group without tasks.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, tasks: Vec::new(), failed: Arc::default() }
    }

    /// Spawns a task; `name` is its name in logs and errors.
    pub fn start(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let (shutdown, failed) = (self.shutdown.clone(), self.failed.clone());
        let watched = async move {
            let outcome = AssertUnwindSafe(work).catch_unwind().await;
            if outcome.is_err() || !shutdown.is_triggered() {
                let how = if outcome.is_err() { "panicked" } else { "ended too early" };
                tracing::error!(task = name, how, "a task of the service failed, so the service stops");
                failed.store(true, Ordering::Release);
                shutdown.trigger();
            }
        };
        self.tasks.push((name, crate::spawn(watched)));
    }

    /// Waits for the shutdown, then for all tasks to end, at most for `limit` together.
    ///
    /// # Errors
    /// The names of the tasks that failed or did not end in time.
    pub async fn join(self, limit: Duration) -> Result<(), String> {
        self.shutdown.wait().await;
        let end = Instant::now() + limit;
        let mut unfinished = Vec::new();
        for (name, task) in self.tasks {
            if timeout(end.saturating_duration_since(Instant::now()), task).await.is_err() {
                unfinished.push(name);
            }
        }
        match (unfinished.as_slice(), self.failed.load(Ordering::Acquire)) {
            ([], false) => Ok(()),
            ([], true) => Err("a task of the service failed".to_owned()),
            (unfinished, _) => Err(format!("not ended within {} ms: {}", limit.as_millis(), unfinished.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than a busy machine takes to poll a task that is ready; also how long the test with a task that never
    /// ends takes.
    const LIMIT: Duration = Duration::from_millis(500);

    /// Runs one task, which is given the shutdown token, and joins it; `trigger` says whether the shutdown is
    /// triggered.
    fn join<W: Future<Output = ()> + Send + 'static>(
        task: impl FnOnce(Shutdown) -> W,
        trigger: bool,
    ) -> Result<(), String> {
        let shutdown = Shutdown::new();
        let work = task(shutdown.clone());
        crate::block_on(1, async move {
            let mut tasks = TaskGroup::new(shutdown.clone());
            tasks.start("task", work);
            if trigger {
                shutdown.trigger();
            }
            tasks.join(LIMIT).await
        })
    }

    #[test]
    fn a_task_may_end_after_the_shutdown() {
        assert_eq!(join(|shutdown| async move { shutdown.wait().await }, true), Ok(()));
    }

    #[test]
    fn a_task_that_ends_early_or_panics_stops_the_service() {
        assert!(join(|_| async {}, false).unwrap_err().contains("failed"));
        assert!(join(|_| async { panic!("this panic belongs to the test") }, false).unwrap_err().contains("failed"));
    }

    #[test]
    fn a_task_that_does_not_end_is_named() {
        assert_eq!(join(|_| std::future::pending(), true), Err("not ended within 500 ms: task".to_owned()));
    }
}
