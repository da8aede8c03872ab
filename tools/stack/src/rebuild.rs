//! Rebuilds analytics' state from the topic: the state is a cache of it, and deleting the file means reading it again.

use std::{
    collections::BTreeMap,
    fs,
    io::{IsTerminal as _, Write as _, stderr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value as Json;

use crate::{
    Failure, Outcome,
    analytics::{Analytics, applied},
    docker::Docker,
    home, native,
    settings::Settings,
    topic,
};

/// How long analytics may go without getting on.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked. Each question is one of its requests.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How often the user sees how far it is.
const SHOW: Duration = Duration::from_secs(5);
/// The totals that are shown.
const TOTALS: [&str; 5] = ["activePatients", "created", "updated", "deleted", "unknown"];

/// Who runs analytics-service.
pub(crate) enum Runner {
    Native,
    Docker(Docker),
}

/// Stops analytics-service, takes its state away, starts it again and waits until it has applied every event that there
/// was; tells how fast it was. `anyway`: also if the topic does not hold all that the state had counted.
pub(crate) async fn run(settings: &Settings, runner: &Runner, analytics: &Analytics, anyway: bool) -> Outcome {
    // Before anything is taken away: without the topic there is nothing to rebuild from.
    let kafka = topic::kafka(settings, "rebuild")?;
    let events: BTreeMap<_, _> =
        topic::events(&kafka).await?.into_iter().map(|(partition, (_, there))| (partition, there)).collect();
    let before = analytics.summary().await.ok();
    let gone: Vec<_> = events.iter().filter(|(_, there)| there.start > 0).collect();
    if !gone.is_empty() && !anyway {
        let gone = gone.iter().map(|(partition, there)| format!("{} of partition {partition}", there.start));
        return Err(Failure(format!(
            "The topic does not hold its first records any more: {}. A rebuild would not count them; nothing was done. \
             To count what there is: just rebuild-analytics --anyway",
            gone.collect::<Vec<_>>().join(", ")
        )));
    }

    let aside = runner.take_state(settings).await?;
    let last = events.iter().map(|(partition, there)| (*partition, there.end - 1)).collect();
    let count: i64 = events.values().map(|there| there.end - there.start).sum();
    let first: BTreeMap<i32, i64> = events.iter().map(|(partition, there)| (*partition, there.start)).collect();
    let started = Instant::now();
    runner.start(settings).await?;
    let ready = started.elapsed();
    let mut progress = Progress { first, count, shown: Instant::now() };
    let after = analytics.until_applied(&last, TIMEOUT, POLL_INTERVAL, |summary| progress.show(summary)).await;
    let after =
        after.map_err(|Failure(why)| Failure(format!("{why}\nThe state as it was is in {}.", aside.path.display())))?;
    let took = started.elapsed();
    aside.remove()?;

    println!(
        "{count} events in {:.2} s: {:.0} events a second, the start of the service ({:.2} s) included.",
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
    fn show(&mut self, summary: &Json) {
        if self.shown.elapsed() < SHOW || !stderr().is_terminal() {
            return;
        }
        self.shown = Instant::now();
        let applied = applied(summary);
        let done: i64 = self.first.iter().map(|(n, first)| applied.get(n).map_or(0, |offset| offset + 1 - first)).sum();
        let _ = writeln!(stderr(), "  {done} of {} events", self.count);
    }
}

/// The state as it was, kept until the new one is complete.
struct Aside {
    path: PathBuf,
    files: Vec<PathBuf>,
}

impl Runner {
    /// Stops the service and takes its state away.
    async fn take_state(&self, settings: &Settings) -> Outcome<Aside> {
        let home = home::directory()?;
        match self {
            Self::Native => {
                native::stop_analytics(settings, &home).await?;
                Aside::rename(&native::analytics_state(&home))
            }
            Self::Docker(docker) => {
                let path = home.join("analytics.before");
                let _ = fs::remove_dir_all(&path);
                fs::create_dir_all(&path)?;
                let files = docker.take_analytics_state(&path).await?;
                Ok(Aside { path, files })
            }
        }
    }

    /// Starts it again, with no state.
    async fn start(&self, settings: &Settings) -> Outcome {
        match self {
            Self::Native => native::start_analytics(settings, &home::directory()?).await,
            Self::Docker(docker) => docker.start_again().await,
        }
    }
}

impl Aside {
    /// SQLite keeps what is not in the file yet beside it.
    fn rename(state: &Path) -> Outcome<Self> {
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

    fn remove(self) -> Outcome {
        for file in self.files {
            if file.is_dir() { fs::remove_dir_all(file)? } else { fs::remove_file(file)? }
        }
        Ok(())
    }
}
