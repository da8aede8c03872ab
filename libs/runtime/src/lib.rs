//! The frame in which a service runs.
//!
//! - [`Program`]: the command line, the settings, the exit code;
//! - [`spawn`] and [`block_on`]: our own executor threads, apart from those that libraries spawn on;
//! - [`Shutdown`]: the token that tells every part to finish, triggered by SIGTERM or SIGINT;
//! - [`Parts`]: the long-running parts of a service, joined within a deadline;
//! - [`listen`]: bind first, serve later;
//! - [`Wake`]: tells a task that there is something to do;
//! - [`within`] and [`Backoff`]: no wait without an end, no retry without a pause.

mod backoff;
mod deadline;
mod executor;
mod listen;
mod parts;
mod program;
mod shutdown;
mod wake;

pub use backoff::Backoff;
pub use deadline::{Elapsed, within};
pub use executor::{block_on, spawn};
pub use listen::listen;
pub use parts::Parts;
pub use program::{Failure, Program};
pub use shutdown::Shutdown;
pub use wake::Wake;
