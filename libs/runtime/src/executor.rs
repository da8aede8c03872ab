use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    thread,
};

use futures_lite::FutureExt as _;
use smol::{Executor, Task, channel};

/// The executor of the service's own tasks. Libraries such as sqlx spawn on smol's global executor, which has one
/// thread.
static EXECUTOR: Executor<'static> = Executor::new();

/// Spawns `work` on the executor's threads. Dropping the [`Task`] cancels it; `detach` lets it run on.
pub fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    EXECUTOR.spawn(work)
}

/// Runs `main` and the tasks that it spawns on `threads` threads, including this one, until `main` ends.
///
/// Idle threads drive the I/O reactor.
///
/// # Panics
/// If `threads` is 0, if a thread cannot be started, or if `main` panics.
pub fn block_on<T>(threads: usize, main: impl Future<Output = T>) -> T {
    assert!(threads > 0, "an executor needs a thread");
    // A panic of `main` becomes a result, so that every panic caught in `work_until` is that of a task.
    let main = AssertUnwindSafe(main).catch_unwind();
    let (running, stopped) = channel::bounded::<()>(1);
    thread::scope(|scope| {
        for number in 1..threads {
            let stopped = stopped.clone();
            thread::Builder::new()
                .name(format!("executor-{number}"))
                .spawn_scoped(scope, move || work_until(stopped.recv()))
                .expect("the system has room for a few threads");
        }
        let result = work_until(main);
        drop(running);
        result.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Runs tasks on this thread until `end`. A task that panics takes only itself down, like a thread of its own.
fn work_until<T>(end: impl Future<Output = T>) -> T {
    let mut end = pin!(end);
    loop {
        // `catch_unwind` sees panics of tasks; their payload has been printed by the panic hook.
        let outcome = catch_unwind(AssertUnwindSafe(|| smol::block_on(EXECUTOR.run(end.as_mut()))));
        if let Ok(result) = outcome {
            return result;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_run_on_every_thread_count() {
        for threads in 1..4 {
            let sum = block_on(threads, async {
                let tasks: Vec<_> = (1..=10).map(|n| spawn(async move { n })).collect();
                let mut sum = 0;
                for task in tasks {
                    sum += task.await;
                }
                sum
            });
            assert_eq!(sum, 55);
        }
    }

    #[test]
    #[should_panic(expected = "this panic belongs to the test")]
    fn a_panic_of_main_ends_it() {
        block_on(2, async { panic!("this panic belongs to the test") })
    }

    #[test]
    fn a_panicking_task_leaves_the_others_alone() {
        let rest = block_on(2, async {
            spawn(async { panic!("this panic belongs to the test") }).detach();
            let mut rest = 0;
            for n in 0..100 {
                rest += spawn(async move { n }).await;
            }
            rest
        });
        assert_eq!(rest, 4950);
    }
}
