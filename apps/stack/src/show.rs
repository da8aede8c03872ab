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
