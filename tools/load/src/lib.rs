//! Measures an implementation of the patient registry from outside, over HTTP.
//!
//! `load closed` finds the peak: each connection sends its next request when it has the response to the last one.
//! `load open` finds the latency at a fixed rate: requests start on schedule whatever the responses do, and the latency of a
//! late one counts from its scheduled start. See `load --help`.

use std::{fmt, fs, process::ExitCode, sync::Arc};

use clap::Parser as _;
use runtime::Shutdown;

mod counters;
mod event_latency;
mod machine;
mod options;
mod processes;
mod progress;
mod recorder;
mod report;
mod run;
mod scenario;
mod schedule;
pub mod target;

use options::Options;

/// Why there is no measurement: a message for the user.
#[derive(Debug)]
struct Failure(String);

impl<E: fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

type Outcome<T = ()> = Result<T, Failure>;

/// Runs the command line.
pub fn main() -> ExitCode {
    let options = Options::parse();
    let threads = options.run().threads.into();
    match runtime::block_on(threads, measure(Arc::new(options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure(why)) => {
            eprintln!("load: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports; false if no request succeeded.
async fn measure(options: Arc<Options>) -> Outcome<bool> {
    let shutdown = Shutdown::new();
    shutdown.trigger_on_signals()?;
    let report = run::run(options.clone(), shutdown).await?;
    print!("{report}");
    if let Some(path) = &options.run().json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report.succeeded())
}
