//! The machine of a measurement: figures of different machines do not compare.

use std::{fmt, fs, thread};

use serde::Serialize;

/// Processor, memory and kernel.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: f64,
    system: String,
}

impl Machine {
    /// This machine. What cannot be read is left empty.
    pub(crate) fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let memory_kib: f64 = value(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.split(' ').next())
            .and_then(|number| number.parse().ok())
            .unwrap_or_default();
        let release = read("/proc/sys/kernel/osrelease");
        // The suffix names the distribution that built the kernel.
        let release = release.split(['-', '\n']).next().unwrap_or_default();
        Self {
            cpu: value(&cpu_info, "model name").unwrap_or_default().to_owned(),
            cores: thread::available_parallelism().map_or(0, Into::into),
            memory_gib: (memory_kib / 1024.0 / 1024.0 * 10.0).round() / 10.0,
            system: format!("Linux {release}"),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, memory_gib, system } = self;
        write!(f, "{cores} cores of {cpu}, {memory_gib} GiB, {system}")
    }
}

/// The value in a line `name : value`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line() {
        let text = "processor\t: 0\nmodel name\t: A CPU\n\nMemTotal:       24611920 kB\n";
        assert_eq!(value(text, "model name"), Some("A CPU"));
        assert_eq!(value(text, "MemTotal"), Some("24611920 kB"));
        assert_eq!(value(text, "none"), None);
    }
}
