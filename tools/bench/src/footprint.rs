//! The footprint of the idle services: memory, time to be ready, size of binaries and images.

use std::{fs, process::Command, time::Instant};

use testbed::{
    Process,
    service::{Service, binaries},
    system::System,
};

use crate::{Failure, Outcome, fixture::SETTLE_TIME, progress::step, results::Results, tool};

/// Selects a service of a system.
type Select = fn(&mut System) -> &mut Service;

const SERVICES: [Select; 3] =
    [|system| &mut system.billing, |system| &mut system.analytics, |system| &mut system.patients[0]];

pub(crate) async fn measure(system: &mut System, results: &mut Results) -> Outcome {
    let work = async {
        for select in SERVICES {
            let name = select(system).launch().name;
            select(system).stop().await;
            let begin = Instant::now();
            system.restart(select).await?;
            let ready = begin.elapsed().as_secs_f64() * 1e3;
            results.figure(&format!("ready-{name}"), &format!("{name}, start to ready"), "ms", ready);
            let size = fs::metadata(binaries()?.join(name))?.len() as f64 / 1024.0 / 1024.0;
            results.figure(&format!("size-{name}"), &format!("{name}, size of the binary"), "MiB", size);
        }
        smol::Timer::after(SETTLE_TIME).await;
        for service in system.services() {
            let name = service.launch().name;
            let rss = rss_mib(service.process());
            results.figure(&format!("rss-idle-{name}"), &format!("memory of {name}, idle"), "MiB", rss);
        }
        Ok::<_, Failure>(())
    };
    step("Footprint of the services", work).await
}

/// The sizes of the images; prints a message if there are none.
pub(crate) async fn images(results: &mut Results) {
    for name in ["patient-service", "billing-service", "analytics-service"] {
        match image(name).await {
            Ok(size) => results.figure(&format!("image-{name}"), &format!("{name}, size of the image"), "MiB", size),
            Err(Failure(why)) => eprintln!("The image of {name} is not measured: {why}"),
        }
    }
}

/// MiB of a service's image that was built last, with all its layers.
async fn image(name: &str) -> Outcome<f64> {
    let mut list = Command::new("docker");
    list.args(["image", "ls", "--quiet", "--filter", &format!("label=org.opencontainers.image.title={name}")]);
    let images = tool::output(list).await?;
    // The newest is the first.
    let image = images.lines().next().ok_or("`just up --docker` builds it")?;
    let mut inspect = Command::new("docker");
    inspect.args(["image", "inspect", "--format", "{{.Size}}", image]);
    let bytes: f64 = tool::output(inspect).await?.trim().parse()?;
    Ok(bytes / 1024.0 / 1024.0)
}

/// The resident set of a process in MiB.
pub(crate) fn rss_mib(process: &Process) -> f64 {
    process.memory() as f64 / 1024.0 / 1024.0
}
