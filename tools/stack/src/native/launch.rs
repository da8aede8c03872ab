//! Starts a service, and restarts a running one if its binary or a setting has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    time::UNIX_EPOCH,
};

use anyhow::Result;
use testbed::service::{Launch, binaries};

use crate::{private_file, terminal::step};

/// A log above this size is rotated at the next start; one old log is kept.
const LOG_BYTES: u64 = 10 * 1024 * 1024;

/// Starts a service. If it runs, it is restarted only if its binary or a setting has changed; the reason is printed.
pub(super) async fn start(launch: Launch) -> Result<()> {
    let name = launch.name;
    let now = LaunchRecord::of(&launch)?;
    let file = launch.directory.join(format!("{}.started-as", launch.label));
    if let Some(mut running) = launch.clone().running() {
        let error = match LaunchRecord::read(&file) {
            Some(before) if before != now => now.differences(&before),
            Some(_) if running.is_ready().await => return Ok(()),
            Some(_) => "it is not ready".to_owned(),
            None => "its settings are unknown".to_owned(),
        };
        eprintln!("{name} is started again: {error}");
        step(&format!("Stopping {name}"), "", async { Ok::<_, anyhow::Error>(running.stop().await) }).await?;
    }
    let start = async {
        rotate(&launch.log())?;
        let mut service = launch.start()?;
        now.write(&file)?;
        Ok::<_, anyhow::Error>(service.until_ready().await?)
    };
    step(&format!("Starting {name}"), "", start).await
}

/// The binary and the settings with which a service was started. Values are stored as hashes, because some are secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LaunchRecord(BTreeMap<String, String>);

impl LaunchRecord {
    fn of(launch: &Launch) -> Result<Self> {
        let binary = fs::metadata(binaries()?.join(launch.name))?;
        let modified = binary.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
        let ours = [("binary", format!("{} {modified}", binary.len())), ("port", launch.port.to_string())]
            .map(|(name, value)| (format!("its {name}"), value));
        let digest = |value: &str| {
            let mut hasher = DefaultHasher::new();
            value.hash(&mut hasher);
            format!("{:016x}", hasher.finish())
        };
        let settings = launch.environment.iter().map(|(name, value)| (name.clone(), digest(value)));
        Ok(Self(ours.into_iter().chain(settings).collect()))
    }

    fn read(file: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(file).ok()?).ok().map(Self)
    }

    fn write(&self, file: &Path) -> Result<()> {
        private_file::write(file, &serde_json::to_string_pretty(&self.0)?)
    }

    /// The names of what has changed.
    fn differences(&self, before: &Self) -> String {
        let names = self.0.keys().chain(before.0.keys()).collect::<BTreeSet<_>>();
        let changed = names.into_iter().filter(|name| self.0.get(*name) != before.0.get(*name));
        let changed: Vec<_> = changed.map(String::as_str).collect();
        format!("{} changed", changed.join(", "))
    }
}

pub(super) fn rotate(log: &Path) -> Result<()> {
    if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES) {
        fs::rename(log, log.with_extension("log.1"))?;
    }
    Ok(())
}
