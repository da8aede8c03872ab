//! The two backends that run the system, natively and in Docker, and which of them this checkout uses.

use std::{
    fmt, fs,
    io::{BufRead as _, Write as _, stdin, stdout},
    process::Output,
};

use anyhow::{Result, anyhow};

use crate::{
    addresses::Addresses,
    analytics::Analytics,
    docker::{self, Docker, Layout},
    home::{self, Mode},
    lock::SystemLock,
    logs, native,
    rebuild::{self, Runner},
    secure,
    settings::Settings,
    terminal,
};

/// How the system runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// As processes on this machine.
    Native,
    /// In containers.
    Docker(Layout),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "natively",
            Self::Docker(Layout::Single) => "in containers",
            Self::Docker(Layout::Scaled) => "in containers, scaled",
        })
    }
}

const NAMES: [(&str, Backend); 3] = [
    ("native", Backend::Native),
    ("docker", Backend::Docker(Layout::Single)),
    ("docker-scaled", Backend::Docker(Layout::Scaled)),
];

impl Backend {
    /// The backend of the last `up` in this checkout.
    pub(crate) fn of_checkout() -> Result<Self> {
        let name = fs::read_to_string(home::directory()?.join(home::BACKEND_FILE)).unwrap_or_default();
        let known = NAMES.iter().find(|(known, _)| *known == name.trim());
        Ok(known.map_or(Self::Native, |(_, backend)| *backend))
    }

    fn remember(self) -> Result<()> {
        let name = NAMES.iter().find(|(_, backend)| *backend == self).map_or("native", |(name, _)| *name);
        Ok(fs::write(home::directory()?.join(home::BACKEND_FILE), format!("{name}\n"))?)
    }

    async fn is_up(self, settings: &Settings) -> Result<bool> {
        match self {
            Self::Native => native::is_up(settings),
            // An engine that does not respond runs no container of ours. If Compose does not respond, it is unknown.
            Self::Docker(layout) => match docker::check_engine().await {
                Ok(()) => Docker::find(layout).await?.is_up().await,
                Err(_) => Ok(false),
            },
        }
    }
}

/// The backend that the user requests by the arguments of `up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestedBackend {
    Automatic,
    Only(Backend),
}

/// The options of `up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Options {
    requested: RequestedBackend,
    /// `--yes`: databases that `up` has not created may be used.
    assume_yes: bool,
    /// No `--no-build`.
    build: bool,
    /// `--secure`; without it, the system has no identities.
    mode: Mode,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options =
            Self { requested: RequestedBackend::Automatic, assume_yes: false, build: true, mode: Mode::Open };
        let mut others = Vec::new();
        for argument in arguments {
            match *argument {
                "--yes" => options.assume_yes = true,
                "--no-build" => options.build = false,
                "--secure" => options.mode = Mode::Secure,
                other => others.push(other),
            }
        }
        options.requested = RequestedBackend::of(&others)?;
        Ok(options)
    }
}

impl RequestedBackend {
    fn of(arguments: &[&str]) -> Result<Self> {
        match arguments {
            [] => Ok(Self::Automatic),
            ["--native"] => Ok(Self::Only(Backend::Native)),
            ["--docker"] => Ok(Self::Only(Backend::Docker(Layout::Single))),
            ["--scaled"] | ["--docker", "--scaled"] => Ok(Self::Only(Backend::Docker(Layout::Scaled))),
            _ => Err(anyhow!("up takes --docker, --native or --scaled, --secure, --yes and --no-build.")),
        }
    }
}

/// Starts what is not running yet and waits until everything is ready.
pub(crate) async fn up(settings: &Settings, arguments: &[&str]) -> Result<()> {
    let Options { requested, assume_yes, build, mode } = Options::parse(arguments)?;
    let _lock = SystemLock::take("just up")?;
    let (last, last_mode) = (Backend::of_checkout()?, Mode::of_checkout()?);
    let is_up = last.is_up(settings).await?;
    if is_up && mode != last_mode {
        let other = match last_mode {
            Mode::Open => "without identities and TLS",
            Mode::Secure => "secure, with identities and TLS",
        };
        let same = if last_mode == Mode::Secure { "just up --secure" } else { "just up" };
        return Err(anyhow!(
            "The system is up already, {last}, {other}. The two have data of their own. To go on with that one: {same}. To change: \
             just down, and then again."
        ));
    }
    let choice = match requested {
        RequestedBackend::Only(backend) => backend,
        RequestedBackend::Automatic if is_up => last,
        // These settings apply to the native system alone.
        RequestedBackend::Automatic if settings.names_backing_services() => Backend::Native,
        RequestedBackend::Automatic => match docker::check_engine().await {
            Ok(()) => Backend::Docker(Layout::Single),
            Err(docker::EngineError::NotInstalled) => Backend::Native,
            Err(docker::EngineError::Unreachable(error)) => {
                eprintln!("Docker is installed, but its engine cannot be used, so the system runs natively: {error}\n");
                Backend::Native
            }
        },
    };
    if is_up && choice != last {
        return Err(anyhow!("The system is up already, {last}. Stop that one first: just down"));
    }
    if mode == Mode::Secure && choice == Backend::Docker(Layout::Scaled) {
        return Err(anyhow!("up --secure starts one of each service: leave --scaled out."));
    }
    mode.remember()?;
    if let Backend::Docker(layout) = choice {
        let prepared = async {
            let docker = Docker::find_for_up(layout).await?;
            if build {
                docker.fetch_images().await?;
            }
            Ok::<_, anyhow::Error>(docker)
        };
        match prepared.await {
            Ok(docker) => {
                choice.remember()?;
                return docker.up(&settings.of_containers(), build).await;
            }
            Err(failure) if requested == RequestedBackend::Only(choice) => return Err(failure),
            Err(error) => {
                eprintln!("{error}\n\nSo the system runs natively. (just up --docker would have failed here.)\n");
            }
        }
    }
    Backend::Native.remember()?;
    if build {
        native::build().await?;
    }
    native::up(settings, assume_yes).await
}

/// The engine that runs the system of this checkout; none if it runs natively.
pub(crate) async fn docker_of_checkout() -> Result<Option<Docker>> {
    match Backend::of_checkout()? {
        Backend::Native => Ok(None),
        Backend::Docker(layout) => Docker::find(layout).await.map(Some),
    }
}

/// Stops everything; data stay.
pub(crate) async fn down(settings: &Settings) -> Result<()> {
    let _lock = SystemLock::take("just down")?;
    match Backend::of_checkout()? {
        Backend::Native => native::down(settings).await,
        Backend::Docker(layout) => Docker::find(layout).await?.down().await,
    }
}

/// Shows what runs.
pub(crate) async fn ps(settings: &Settings) -> Result<()> {
    let components = match Backend::of_checkout()? {
        Backend::Native => native::ps(settings).await?,
        Backend::Docker(layout) => Docker::find(layout).await?.ps().await?,
    };
    terminal::table(&components);
    Ok(())
}

/// Shows the logs.
pub(crate) async fn logs(arguments: &[&str]) -> Result<()> {
    match Backend::of_checkout()? {
        Backend::Native => logs::run(arguments, native::logs()?),
        Backend::Docker(layout) => logs::run(arguments, Docker::find(layout).await?.logs().await?),
    }
}

/// Kills a service by SIGKILL; `up` starts it again.
pub(crate) async fn kill(settings: &Settings, service: &str) -> Result<()> {
    match Backend::of_checkout()? {
        Backend::Native => native::kill(settings, service).await,
        Backend::Docker(layout) => Docker::find(layout).await?.kill(service).await,
    }
}

/// The addresses of the running system.
pub(crate) async fn addresses(settings: &Settings) -> Result<Addresses> {
    let backend = Backend::of_checkout()?;
    if !backend.is_up(settings).await? {
        return Err(anyhow!("Nothing is running: just up"));
    }
    match backend {
        Backend::Native => Ok(Addresses::of_single(settings, Mode::of_checkout()?)),
        Backend::Docker(layout) => Docker::find(layout).await?.addresses(settings).await,
    }
}

/// Runs a subcommand of patient-service with the settings of this checkout's service.
pub(crate) async fn run_patient_service(settings: &Settings, arguments: &[&str]) -> Result<Output> {
    match Backend::of_checkout()? {
        Backend::Native => native::run_patient_service(settings, arguments).await,
        Backend::Docker(layout) => Docker::find(layout).await?.run_patient_service(arguments).await,
    }
}

/// A client of every analytics-service of the system.
pub(crate) fn analytics(settings: &Settings) -> Result<Analytics> {
    let scaled = Backend::of_checkout()? == Backend::Docker(Layout::Scaled);
    let addresses = settings.analytics_addresses(scaled);
    Ok(Analytics::new(addresses.iter().map(|address| secure::client(settings, address)).collect::<Result<_>>()?))
}

/// Rebuilds analytics' state from the topic.
pub(crate) async fn rebuild_analytics(settings: &Settings, anyway: bool) -> Result<()> {
    let _lock = SystemLock::take("just rebuild-analytics")?;
    let runner = match Backend::of_checkout()? {
        Backend::Native => Runner::Native,
        Backend::Docker(layout) => Runner::Docker(Docker::find(layout).await?),
    };
    rebuild::run(settings, &runner, &analytics(settings)?, anyway).await
}

/// Stops everything and deletes its data, after the user has confirmed it.
pub(crate) async fn reset(settings: &Settings, assume_yes: bool) -> Result<()> {
    let backend = Backend::of_checkout()?;
    let place = match backend {
        Backend::Native => home::directory()?.display().to_string(),
        Backend::Docker(_) => "the volumes of its containers".to_owned(),
    };
    let is_external = backend == Backend::Native && settings.database_url.is_some();
    if is_external {
        println!("The databases on the server of DATABASE_URL stay as they are.");
    }
    if !assume_yes {
        let what = if is_external {
            "everything else of this system"
        } else {
            "every patient, account and event of this system"
        };
        print!("This deletes {what}, in {place}.\nType yes to continue: ");
        stdout().flush()?;
        let mut response = String::new();
        stdin().lock().read_line(&mut response)?;
        if response.trim() != "yes" {
            return Err(anyhow!("Nothing was deleted."));
        }
    }
    let _lock = SystemLock::take("just reset")?;
    match backend {
        Backend::Native => native::delete(settings).await?,
        Backend::Docker(layout) => Docker::find(layout).await?.delete().await?,
    }
    println!("All data are deleted.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_accepts_one_backend() {
        let parsed = |arguments: &[&str]| {
            let options = Options::parse(arguments).unwrap();
            (options.requested, options.assume_yes, options.build)
        };
        let native = RequestedBackend::Only(Backend::Native);
        assert_eq!(parsed(&[]), (RequestedBackend::Automatic, false, true));
        assert_eq!(parsed(&["--native"]), (native, false, true));
        assert_eq!(parsed(&["--yes", "--native"]), (native, true, true));
        assert_eq!(Options::parse(&[]).unwrap().mode, Mode::Open);
        assert_eq!(Options::parse(&["--native", "--secure"]).unwrap().mode, Mode::Secure);
        assert_eq!(parsed(&["--no-build"]), (RequestedBackend::Automatic, false, false));
        let scaled = RequestedBackend::Only(Backend::Docker(Layout::Scaled));
        assert_eq!(parsed(&["--docker", "--scaled"]), (scaled, false, true));
        for wrong in [&["--native", "--docker"][..], &["--nativ"], &["--native", "--scaled"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
