//! The frame in which a service runs.
//!
//! - [`Program`]: the command line, the settings, the exit code;
//! - [`spawn`] and [`block_on`]: our own executor threads, apart from those that libraries spawn on;
//! - [`Shutdown`]: the token that tells every part to finish, triggered by SIGTERM or SIGINT;
//! - [`TaskGroup`]: the long-running parts of a service, joined within a deadline;
//! - [`listen()`]: bind first, serve later;
//! - [`Notify`]: tells a task that there is something to do;
//! - [`timeout()`] and [`Backoff`]: no wait without an end, no retry without a pause.

mod backoff;
mod executor;
mod listen;
mod notify;
mod program;
mod shutdown;
mod task_group;
mod timeout;

pub use backoff::Backoff;
pub use executor::{block_on, spawn};
pub use listen::listen;
pub use notify::Notify;
pub use program::{Command, Failure, Program, RunCommand};
pub use shutdown::Shutdown;
pub use task_group::TaskGroup;
pub use timeout::{Elapsed, timeout};
