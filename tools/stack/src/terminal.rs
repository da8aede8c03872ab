//! Progress messages and tables.

use std::{
    future::Future,
    io::{Write as _, stderr},
    time::{Duration, Instant},
};

/// How often a long step prints its time.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(15);

/// Runs a step and prints its name, the time so far with `note` at intervals, and the time that it took.
pub(crate) async fn step<T, E>(name: &str, note: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    eprint!("{name:<44}");
    let _ = stderr().flush();
    let started = Instant::now();
    let progress = async {
        loop {
            smol::Timer::after(PROGRESS_INTERVAL).await;
            eprint!("\n  {} s {note}", started.elapsed().as_secs());
            let _ = stderr().flush();
        }
    };
    let result = smol::future::or(work, progress).await;
    match &result {
        Ok(_) => eprintln!(" {:>6.1} s", started.elapsed().as_secs_f64()),
        Err(_) => eprintln!(" failed"),
    }
    result
}

/// A row of `ps`.
pub(crate) struct Component {
    pub(crate) name: String,
    /// The id of its process or container.
    pub(crate) process: String,
    pub(crate) state: String,
    pub(crate) memory: String,
    /// Its address.
    pub(crate) address: String,
}

/// Prints the table of `ps`.
pub(crate) fn table(components: &[Component]) {
    println!("{:<20}{:>14}  {:<9}{:>10}  address", "component", "process", "state", "memory");
    for Component { name, process, state, memory, address } in components {
        println!("{name:<20}{process:>14}  {state:<9}{memory:>10}  {address}");
    }
}
