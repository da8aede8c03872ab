//! Progress of a run on stderr.

use std::{
    io::{Write as _, stderr},
    time::Instant,
};

/// Runs a step and prints how long it took.
pub(crate) async fn step<T, E>(what: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    eprint!("{what:<60}");
    let _ = stderr().flush();
    let started = Instant::now();
    let result = work.await;
    eprintln!(" {:>7.1} s{}", started.elapsed().as_secs_f64(), if result.is_ok() { "" } else { "  failed" });
    result
}
