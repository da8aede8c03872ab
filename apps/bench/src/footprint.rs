//! What the services take before they do anything: memory, time to be ready, the size of their binaries.

use std::{fs, time::Instant};

use testbed::{
    service::{Service, binaries},
    system::System,
};

use crate::{Failure, Outcome, ground::SETTLE, results::Results, show::step};

/// A service of a system.
type Which = fn(&mut System) -> &mut Service;

const SERVICES: [Which; 3] =
    [|system| &mut system.billing, |system| &mut system.analytics, |system| &mut system.patients[0]];

pub(crate) async fn measure(system: &mut System, results: &mut Results) -> Outcome {
    let work = async {
        for which in SERVICES {
            let name = which(system).launch().name;
            which(system).stop().await;
            let begin = Instant::now();
            system.restart(which).await?;
            let ready = begin.elapsed().as_secs_f64() * 1e3;
            results.figure(&format!("ready-{name}"), &format!("{name}, start to ready"), "ms", ready);
            let size = fs::metadata(binaries()?.join(name))?.len() as f64 / 1024.0 / 1024.0;
            results.figure(&format!("size-{name}"), &format!("{name}, size of the binary"), "MiB", size);
        }
        smol::Timer::after(SETTLE).await;
        for service in system.services() {
            let name = service.launch().name;
            let rss = rss_mib(service.process().pid());
            results.figure(&format!("rss-idle-{name}"), &format!("memory of {name}, idle"), "MiB", rss);
        }
        Ok::<_, Failure>(())
    };
    step("Footprint of the services", work).await
}

/// The resident set of a process.
pub(crate) fn rss_mib(pid: i32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0
}
