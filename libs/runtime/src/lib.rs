//! What every service is built on: its command line, its executor and its shutdown.
//!
//! - [`Program`]: the command line, the settings, the exit code;
//! - [`spawn`] and [`block_on`]: our own executor threads, apart from those that libraries spawn on;
//! - [`Shutdown`]: the cancellation token of the service, triggered by SIGTERM or SIGINT;
//! - [`TaskGroup`]: the long-running tasks of a service, joined within a deadline;
//! - [`connect()`]: connects to whichever address of a host answers;
//! - [`listen()`]: binds a listener before it is served;
//! - [`Notify`]: wakes a task;
//! - [`timeout()`] and [`Backoff`]: a bound for every wait, and pauses between retries.

mod backoff;
mod connect;
mod deadlines;
mod executor;
mod listen;
mod notify;
mod program;
mod shutdown;
mod task_group;
mod timeout;

pub use backoff::Backoff;
pub use connect::{connect, connect_to};
pub use executor::{block_on, spawn};
pub use listen::listen;
pub use notify::Notify;
pub use program::{Command, Failure, Program, RunCommand};
pub use shutdown::Shutdown;
pub use task_group::TaskGroup;
pub use timeout::{Elapsed, timeout};
