//! What tonic's client runs on: an executor of smol's among our own tasks, and smol's sockets. Of tokio it has the timers alone,
//! so that a call crosses no thread; the bridge's own thread would be passed four times.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_compat::Compat;
use config::HostPort;
use smol::{Executor, channel, net::TcpStream};
use smol_hyper::rt::FuturesIo;
use tonic::codegen::http::Uri;
use tower::Service;

/// Runs the tasks of one client one at a time, on whatever thread is free. tonic hands a request to the task of a connection
/// through a channel of tokio's, which loses what is sent while its receiver is dropped on another thread: the call would end
/// at its deadline, although the connection has. Here no task runs while another one sends.
///
/// It ends once the client and all of the tasks have, which hold clones of it.
#[derive(Clone, Debug)]
pub(crate) struct SequentialExecutor {
    tasks: Arc<Executor<'static>>,
    _running: channel::Sender<()>,
}

impl SequentialExecutor {
    pub(crate) fn new() -> Self {
        let tasks = Arc::new(Executor::new());
        let (running, ended) = channel::bounded(1);
        let executor = tasks.clone();
        // Keep-alive and deadlines are tokio's timers, which are found by way of the thread that polls them.
        runtime::spawn(Compat::new(async move { executor.run(ended.recv()).await })).detach();
        Self { tasks, _running: running }
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for SequentialExecutor {
    fn execute(&self, task: F) {
        self.tasks.spawn(task).detach();
    }
}

/// Connects to a peer, over TLS if that is set.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) address: HostPort,
    /// The handshakes, and the name that the peer's certificate must have.
    pub(crate) tls: Option<(tls::Connector, String)>,
}

impl Service<Uri> for Connector {
    type Response = FuturesIo<tls::Stream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address: HostPort { host, port }, tls } = self.clone();
        Box::pin(async move {
            let stream = runtime::connect(&host, port).await?;
            // A request's head and body are two frames, and the second one would wait for an acknowledgement.
            stream.set_nodelay(true)?;
            Ok(FuturesIo::new(match tls {
                Some((connector, name)) => connector.connect(&name, stream).await?,
                None => tls::Stream::Plain(stream),
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use hyper::rt::Executor as _;
    use smol::future::yield_now;
    use testbed::until;

    use super::*;

    #[test]
    fn the_tasks_of_a_client_run_one_at_a_time() {
        runtime::block_on(3, async {
            let executor = SequentialExecutor::new();
            let (running, most, ended) =
                (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            for _ in 0..3 {
                let (running, most, ended) = (running.clone(), most.clone(), ended.clone());
                executor.execute(async move {
                    for _ in 0..20 {
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        // Long enough for another thread to begin what it may.
                        thread::sleep(Duration::from_millis(1));
                        running.fetch_sub(1, Ordering::SeqCst);
                        yield_now().await;
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
            until("the tasks have ended", async || ended.load(Ordering::SeqCst) == 3).await;
            assert_eq!(most.load(Ordering::SeqCst), 1);
        });
    }

    #[test]
    fn a_task_that_panics_ends_alone_and_the_executor_ends_with_the_last() {
        runtime::block_on(2, async {
            let executor = SequentialExecutor::new();
            let tasks = Arc::downgrade(&executor.tasks);
            executor.execute(async { panic!("this panic belongs to the test") });
            let (done, has_done) = channel::bounded(1);
            let clone = executor.clone();
            executor.execute(async move {
                yield_now().await;
                done.send(()).await.unwrap();
                drop(clone);
            });
            drop(executor);
            has_done.recv().await.unwrap();
            until("the executor ends", async || tasks.strong_count() == 0).await;
        });
    }
}
