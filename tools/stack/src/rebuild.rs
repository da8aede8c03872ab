//! Rebuilds the state of analytics from the topic: analytics with an empty state reads the topic from its beginning.

use std::{
    collections::BTreeMap,
    fs,
    io::{IsTerminal as _, Write as _, stderr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use serde_json::Value as Json;

use crate::{
    analytics::{Analytics, applied},
    docker::Docker,
    home, native,
    settings::Settings,
    topic,
};

/// How long analytics may make no progress.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often the summary is read.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How often progress is printed.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// The totals that are printed.
const TOTALS: [&str; 5] = ["activePatients", "created", "updated", "deleted", "unknown"];

/// How analytics-service runs.
pub(crate) enum Runner {
    Native,
    Docker(Docker),
}

/// Stops analytics-service, sets its state aside, starts it again and waits until it has applied every event; prints the rate.
/// `anyway`: also if the first records of the topic have been deleted.
pub(crate) async fn run(settings: &Settings, runner: &Runner, analytics: &Analytics, anyway: bool) -> Result<()> {
    // First of all: without the topic, the state cannot be rebuilt.
    let kafka = topic::kafka(settings, "rebuild")?;
    let events: BTreeMap<_, _> =
        topic::events(&kafka).await?.into_iter().map(|(partition, (_, offsets))| (partition, offsets)).collect();
    let before = analytics.summary().await.ok();
    let deleted: Vec<_> = events.iter().filter(|(_, offsets)| offsets.start > 0).collect();
    if !deleted.is_empty() && !anyway {
        let deleted = deleted.iter().map(|(partition, offsets)| format!("{} of partition {partition}", offsets.start));
        return Err(anyhow!(
            "The first records of the topic have been deleted: {}. A rebuild would not count them; nothing was changed. \
             To count the others: just rebuild-analytics --anyway",
            deleted.collect::<Vec<_>>().join(", ")
        ));
    }

    let saved_state = runner.set_state_aside(settings).await?;
    let last = events.iter().map(|(partition, offsets)| (*partition, offsets.end - 1)).collect();
    let count: i64 = events.values().map(|offsets| offsets.end - offsets.start).sum();
    let first: BTreeMap<i32, i64> = events.iter().map(|(partition, offsets)| (*partition, offsets.start)).collect();
    let started = Instant::now();
    runner.start(settings).await?;
    let ready = started.elapsed();
    let mut progress = Progress { first, count, shown: Instant::now() };
    let after = analytics.until_applied(&last, TIMEOUT, POLL_INTERVAL, |summary| progress.terminal(summary)).await;
    let after = after.map_err(|error| anyhow!("{error}\nThe old state is in {}.", saved_state.path.display()))?;
    let took = started.elapsed();
    saved_state.remove()?;

    println!(
        "{count} events in {:.2} s: {:.0} events a second, including the start of the service ({:.2} s).",
        took.as_secs_f64(),
        count as f64 / took.as_secs_f64(),
        ready.as_secs_f64()
    );
    println!("{:<18}{:>10}{:>10}", "", "before", "after");
    for name in TOTALS {
        let before = before.as_ref().map_or("-".to_owned(), |before| before[name].to_string());
        println!("  {name:<16}{before:>10}{:>10}", after[name].to_string());
    }
    Ok(())
}

struct Progress {
    first: BTreeMap<i32, i64>,
    count: i64,
    shown: Instant,
}

impl Progress {
    fn terminal(&mut self, summary: &Json) {
        if self.shown.elapsed() < REPORT_INTERVAL || !stderr().is_terminal() {
            return;
        }
        self.shown = Instant::now();
        let applied = applied(summary);
        let done: i64 = self.first.iter().map(|(n, first)| applied.get(n).map_or(0, |offset| offset + 1 - first)).sum();
        let _ = writeln!(stderr(), "  {done} of {} events", self.count);
    }
}

/// The old state, kept until the new one is complete.
struct SavedState {
    path: PathBuf,
    files: Vec<PathBuf>,
}

impl Runner {
    /// Stops the service and moves its state.
    async fn set_state_aside(&self, settings: &Settings) -> Result<SavedState> {
        let home = home::directory()?;
        match self {
            Self::Native => {
                native::stop_analytics(settings, &home).await?;
                SavedState::rename(&native::analytics_state(&home))
            }
            Self::Docker(docker) => {
                let path = home.join("analytics.before");
                let _ = fs::remove_dir_all(&path);
                fs::create_dir_all(&path)?;
                let files = docker.copy_and_delete_analytics_state(&path).await?;
                Ok(SavedState { path, files })
            }
        }
    }

    /// Starts the service without a state.
    async fn start(&self, settings: &Settings) -> Result<()> {
        match self {
            Self::Native => native::start_analytics(settings, &home::directory()?).await,
            Self::Docker(docker) => docker.start_analytics().await,
        }
    }
}

impl SavedState {
    /// Renames the SQLite file, and its write-ahead log beside it.
    fn rename(state: &Path) -> Result<Self> {
        let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", state.display()));
        let mut files = Vec::new();
        for suffix in ["", "-wal", "-shm"] {
            let (from, to) = (beside(suffix), beside(&format!(".before{suffix}")));
            let _ = fs::remove_file(&to);
            if from.exists() {
                fs::rename(&from, &to)?;
                files.push(to);
            }
        }
        Ok(Self { path: beside(".before"), files })
    }

    fn remove(self) -> Result<()> {
        for file in self.files {
            if file.is_dir() { fs::remove_dir_all(file)? } else { fs::remove_file(file)? }
        }
        Ok(())
    }
}
