//! Parts that are not ours: found, or installed.

use std::{path::Path, process::Command, time::Duration};

use testbed::{Process, broker::Kind, cache, postgres};

use crate::{Failure, Outcome, show::step};

/// Time for a package to be installed.
const PACKAGE_LIMIT: Duration = Duration::from_secs(600);
/// Where Debian's package looks whether to make a cluster of its own when it is installed.
const DEBIAN_CLUSTERS: &str = "/etc/postgresql-common/createcluster.conf";

/// Makes sure that PostgreSQL's binaries are here.
pub(crate) async fn postgres() -> Outcome {
    if postgres::binaries().is_some() {
        return Ok(());
    }
    let missing = "PostgreSQL is not installed. Install it (Debian: apt install postgresql), or set DATABASE_URL.";
    if Command::new("apt-get").arg("--version").output().is_err() || std::fs::write("/var/lib/apt/.probe", "").is_err()
    {
        return Err(Failure(missing.to_owned()));
    }
    let _ = std::fs::remove_file("/var/lib/apt/.probe");
    // The package would start a server of its own on the default port.
    if !Path::new(DEBIAN_CLUSTERS).exists() {
        std::fs::create_dir_all("/etc/postgresql-common")?;
        std::fs::write(DEBIAN_CLUSTERS, "create_main_cluster = false\n")?;
    }
    std::fs::create_dir_all(cache::directory())?;
    let install = Process::prepare("apt-get", "apt-get", cache::directory().join("postgresql-install.log"))
        .args(["install", "-y", "--no-install-recommends", "postgresql"])
        .envs([("DEBIAN_FRONTEND", "noninteractive")])
        .run(PACKAGE_LIMIT);
    step("Installing PostgreSQL", "(Debian's package)", install).await?;
    postgres::binaries().map(drop).ok_or_else(|| Failure(missing.to_owned()))
}

/// Installs the wanted broker; without a wish, Apache Kafka if it can be had, else Nisshi.
pub(crate) async fn broker(wanted: Option<Kind>) -> Outcome<Kind> {
    let order = wanted.map_or(vec![Kind::Kafka, Kind::Nisshi], |wanted| vec![wanted]);
    let mut reasons = Vec::new();
    for kind in order {
        match install(kind).await {
            Ok(()) => return Ok(kind),
            Err(Failure(reason)) => reasons.push(format!("{kind} cannot be had: {reason}")),
        }
    }
    Err(Failure(reasons.join("\n")))
}

async fn install(kind: Kind) -> Outcome {
    if kind.is_installed() {
        return Ok(());
    }
    let (what, expect) = match kind {
        Kind::Kafka => ("Fetching Apache Kafka", "(Maven, about 45 MB)"),
        Kind::OlderKafka => ("Fetching Apache Kafka 3.9, for tests", "(Maven, about 45 MB)"),
        Kind::Nisshi => ("Building Nisshi", "(once, about 7 minutes on two cores)"),
    };
    Ok(step(what, expect, kind.install()).await?)
}

/// Installs what the tests need. Prints on stdout the arguments that leave out the tests of a broker that cannot be had,
/// and says on stderr that and why they are left out.
pub(crate) async fn for_tests(wanted: Option<Kind>) -> Outcome {
    postgres().await?;
    let mut left_out = Vec::new();
    let mut had = false;
    let brokers = [(Kind::Kafka, "on_kafka"), (Kind::OlderKafka, "on_older_kafka"), (Kind::Nisshi, "on_nisshi")];
    for (kind, tests) in brokers {
        // Whoever asks for Apache Kafka is tested with both of its versions.
        let asked = if kind == Kind::OlderKafka { Kind::Kafka } else { kind };
        let outcome = match wanted {
            Some(wanted) if wanted != asked => Err(Failure(format!("BROKER asks for {wanted}"))),
            _ => install(kind).await,
        };
        match outcome {
            Ok(()) => had = true,
            Err(Failure(reason)) => {
                eprintln!("SKIPPED: the tests on {kind} ({tests}): {reason}");
                left_out.push(format!("--skip {tests}"));
            }
        }
    }
    if !mounts_are_allowed() {
        eprintln!(
            "SKIPPED: the tests with a disk of their own (in_a_namespace): unshare and mount are not allowed here"
        );
        left_out.push("--skip in_a_namespace".to_owned());
    }
    if !had {
        return Err(Failure("There is no broker to test with.".to_owned()));
    }
    println!("{}", left_out.join(" "));
    Ok(())
}

/// Whether a process can have a file system of its own, which goes away with it.
fn mounts_are_allowed() -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs"]).arg(std::env::temp_dir());
    unshare.output().is_ok_and(|output| output.status.success())
}
