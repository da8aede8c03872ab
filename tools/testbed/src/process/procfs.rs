//! What `/proc` says of a process.

use std::fs;

use rustix::process::Pid;

/// The resident set size of a process in bytes; none if it has ended.
pub fn resident_memory(pid: i32) -> Option<u64> {
    memory_field(pid, "VmRSS:")
}

pub(super) fn memory_field(pid: i32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
}

/// Whether every thread of a process has stopped.
pub(super) fn has_stopped(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default()).all(|stat| {
        // The file is empty if the thread has ended meanwhile.
        stat.is_empty() || stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
    })
}

/// The descendants of `root`, parents before their children.
pub(super) fn descendants(root: Pid) -> Vec<Pid> {
    let mut pairs = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let parent = pid.and_then(|pid| stat_field(pid, 1)).and_then(|ppid| ppid.parse().ok()).and_then(Pid::from_raw);
        pairs.extend(pid.zip(parent));
    }
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let current = found[next];
        found.extend(pairs.iter().filter(|(_, parent)| *parent == current).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// When a process started, in clock ticks since boot. Pid and start time together identify a process.
pub(super) fn start_time(pid: Pid) -> Option<String> {
    let alive = stat_field(pid, 0)? != "Z";
    alive.then(|| stat_field(pid, 19)).flatten()
}

/// A field of `/proc/<pid>/stat`, counted from 0 after the program's name, which is in parentheses and may contain
/// spaces: 0 is the state, 1 the parent, 19 the start time.
fn stat_field(pid: Pid, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(number).map(str::to_owned)
}
