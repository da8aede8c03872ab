//! What the user sees while something takes long.

use std::{
    future::Future,
    io::{Write as _, stderr},
    time::{Duration, Instant},
};

/// How often a long step says that it goes on.
const SIGN: Duration = Duration::from_secs(15);

/// Does a step and tells when it begins, that it goes on, and how long it took. `expect` is added while it goes on.
pub(crate) async fn step<T, E>(what: &str, expect: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    eprint!("{what:<44}");
    let _ = stderr().flush();
    let started = Instant::now();
    let signs = async {
        loop {
            smol::Timer::after(SIGN).await;
            eprint!("\n  {} s {expect}", started.elapsed().as_secs());
            let _ = stderr().flush();
        }
    };
    let result = smol::future::or(work, signs).await;
    match &result {
        Ok(_) => eprintln!(" {:>6.1} s", started.elapsed().as_secs_f64()),
        Err(_) => eprintln!(" failed"),
    }
    result
}

/// A part of the system, as `ps` shows it.
pub(crate) struct Part {
    pub(crate) name: String,
    /// The id of its process or its container.
    pub(crate) process: String,
    pub(crate) state: String,
    pub(crate) memory: String,
    /// Where it is reached.
    pub(crate) place: String,
}

/// Prints the parts.
pub(crate) fn table(parts: &[Part]) {
    println!("{:<20}{:>14}  {:<9}{:>10}  where", "part", "process", "state", "memory");
    for Part { name, process, state, memory, place } in parts {
        println!("{name:<20}{process:>14}  {state:<9}{memory:>10}  {place}");
    }
}
