//! CPU time and memory of the processes that are measured.

use std::{collections::BTreeMap, fs, str::FromStr, time::Duration};

use serde::Serialize;

/// Interval at which memory is sampled.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A process that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WatchedProcess {
    name: String,
    pid: u32,
}

impl WatchedProcess {
    /// This process: what the generator uses, the service under test cannot have.
    pub(crate) fn own() -> Self {
        Self { name: "load".to_owned(), pid: std::process::id() }
    }
}

impl FromStr for WatchedProcess {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(name, pid)| Some((name.to_owned(), pid.parse().ok()?)));
        let (name, pid) = parts.ok_or_else(|| "expected NAME=PID".to_owned())?;
        if cpu_ticks(pid, &children()).is_none() {
            Err(format!("there is no process {pid}"))
        } else {
            Ok(Self { name, pid })
        }
    }
}

/// CPU time, memory and context switches of a process during the measurement.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    pub(crate) name: String,
    /// User and system time of the process and its descendants.
    pub(crate) cpu_seconds: f64,
    /// The largest sampled resident set of the process alone, in MiB.
    pub(crate) peak_rss_mib: f64,
    /// Voluntary context switches of the process and its descendants: waits for I/O or for other threads.
    pub(crate) voluntary_switches: u64,
}

/// Measures the usage of processes, from its creation until [`finish`](Self::finish).
#[derive(Debug)]
pub(crate) struct UsageMeter {
    watched: Vec<WatchedProcess>,
    before: Vec<ResourceUse>,
    peaks: Vec<f64>,
}

/// The use of a process and its descendants since its start.
#[derive(Clone, Copy, Debug, Default)]
struct ResourceUse {
    /// CPU time, in ticks.
    ticks: u64,
    voluntary_switches: u64,
}

impl UsageMeter {
    pub(crate) fn new(watched: Vec<WatchedProcess>) -> Self {
        let before = resource_use(&watched);
        let peaks = vec![0.0; watched.len()];
        Self { watched, before, peaks }
    }

    /// Samples memory until it is dropped.
    pub(crate) async fn sample_memory<T>(&mut self) -> T {
        loop {
            for (peak, watched) in self.peaks.iter_mut().zip(&self.watched) {
                *peak = peak.max(rss_mib(watched.pid));
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    /// The use of each since `new`.
    pub(crate) fn finish(self) -> Vec<Usage> {
        let after = resource_use(&self.watched);
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        let both = self.before.into_iter().zip(after).zip(self.peaks);
        self.watched
            .into_iter()
            .zip(both)
            .map(|(watched, ((before, after), peak))| Usage {
                name: watched.name,
                cpu_seconds: after.ticks.saturating_sub(before.ticks) as f64 / per_second,
                peak_rss_mib: (peak * 10.0).round() / 10.0,
                voluntary_switches: after.voluntary_switches.saturating_sub(before.voluntary_switches),
            })
            .collect()
    }
}

fn resource_use(watched: &[WatchedProcess]) -> Vec<ResourceUse> {
    let children = children();
    let of_process = |watched: &WatchedProcess| ResourceUse {
        ticks: cpu_ticks(watched.pid, &children).unwrap_or_default(),
        voluntary_switches: voluntary_switches(watched.pid, &children),
    };
    watched.iter().map(of_process).collect()
}

/// Voluntary context switches of the threads of a process and of its descendants. The kernel drops those of threads that
/// have ended.
fn voluntary_switches(pid: u32, children: &BTreeMap<u32, Vec<u32>>) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_thread = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    let descendants = children.get(&pid).into_iter().flatten();
    threads.map(of_thread).sum::<u64>() + descendants.map(|child| voluntary_switches(*child, children)).sum::<u64>()
}

/// Processes by parent.
fn children() -> BTreeMap<u32, Vec<u32>> {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some((pid, parent)) = pid.and_then(|pid| Some((pid, *stat(pid)?.get(1)?))) {
            children.entry(parent as u32).or_default().push(pid);
        }
    }
    children
}

/// The CPU time in ticks of a process, of the children that it has waited for, and of its descendants.
fn cpu_ticks(pid: u32, children: &BTreeMap<u32, Vec<u32>>) -> Option<u64> {
    // utime, stime, cutime and cstime.
    let own: u64 = stat(pid)?.get(11..15)?.iter().sum();
    let descendants = children.get(&pid).into_iter().flatten();
    Some(own + descendants.filter_map(|child| cpu_ticks(*child, children)).sum::<u64>())
}

/// The fields of `/proc/<pid>/stat` after the name, counted from 0: 1 is the parent, 11 to 14 are CPU times. A field that
/// is not a number is 0.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect())
}

fn rss_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_our_own_work_and_memory() {
        let mut meter = UsageMeter::new(vec![WatchedProcess::own()]);
        let begin = std::time::Instant::now();
        let mut sum = 0_u64;
        while begin.elapsed() < Duration::from_millis(200) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        smol::block_on(smol::future::or(meter.sample_memory::<()>(), async {
            smol::Timer::after(Duration::from_millis(5)).await;
        }));
        let usage = meter.finish().remove(0);
        // How much of the time we got depends on who else runs.
        assert!(usage.cpu_seconds > 0.01 && usage.peak_rss_mib > 1.0, "{usage:?}");
        assert!(usage.voluntary_switches > 0, "the wait for the timer: {usage:?}");
    }

    #[test]
    fn a_process_must_be_there() {
        assert!("x=4294967295".parse::<WatchedProcess>().unwrap_err().contains("no process"));
        assert!("1234".parse::<WatchedProcess>().unwrap_err().contains("NAME=PID"));
        let own: WatchedProcess = format!("us={}", std::process::id()).parse().unwrap();
        assert_eq!(own.name, "us");
    }
}
