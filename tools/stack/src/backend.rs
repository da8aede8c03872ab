//! The two ways in which the system runs, and which of them this checkout uses.

use std::{
    fmt, fs,
    io::{BufRead as _, Write as _, stdin, stdout},
    process::Output,
};

use crate::{
    Failure, Outcome,
    addresses::Addresses,
    analytics::Analytics,
    docker::{self, Docker, Layout},
    home, logs, native,
    rebuild::{self, Runner},
    settings::Settings,
    show,
};

/// A way to run the system.
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

/// In the folder of the data: what `up` chose last.
const FILE: &str = "backend";

const NAMES: [(&str, Backend); 3] = [
    ("native", Backend::Native),
    ("docker", Backend::Docker(Layout::Single)),
    ("docker-scaled", Backend::Docker(Layout::Scaled)),
];

impl Backend {
    /// The one that `up` used last in this checkout.
    pub(crate) fn of_checkout() -> Outcome<Self> {
        let name = fs::read_to_string(home::directory()?.join(FILE)).unwrap_or_default();
        let known = NAMES.iter().find(|(known, _)| *known == name.trim());
        Ok(known.map_or(Self::Native, |(_, backend)| *backend))
    }

    fn remember(self) -> Outcome {
        let name = NAMES.iter().find(|(_, backend)| *backend == self).map_or("native", |(name, _)| *name);
        Ok(fs::write(home::directory()?.join(FILE), format!("{name}\n"))?)
    }

    async fn is_up(self, settings: &Settings) -> Outcome<bool> {
        match self {
            Self::Native => native::is_up(settings),
            // An engine that does not answer runs nothing for us. Without an answer of Compose, it may.
            Self::Docker(layout) => match docker::answers().await {
                Ok(()) => Docker::find(layout).await?.is_up().await,
                Err(_) => Ok(false),
            },
        }
    }
}

/// What the user asks `up` for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Any,
    Only(Backend),
}

/// What `up` was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Options {
    wish: Wish,
    /// Databases that `up` has not made may be used.
    agreed: bool,
    /// What has changed since the last build is built first.
    build: bool,
}

impl Options {
    fn parse(words: &[&str]) -> Outcome<Self> {
        let mut options = Self { wish: Wish::Any, agreed: false, build: true };
        let mut wish = Vec::new();
        for word in words {
            match *word {
                "--yes" => options.agreed = true,
                "--no-build" => options.build = false,
                other => wish.push(other),
            }
        }
        options.wish = Wish::of(&wish)?;
        Ok(options)
    }
}

impl Wish {
    fn of(words: &[&str]) -> Outcome<Self> {
        match words {
            [] => Ok(Self::Any),
            ["--native"] => Ok(Self::Only(Backend::Native)),
            ["--docker"] => Ok(Self::Only(Backend::Docker(Layout::Single))),
            ["--scaled"] | ["--docker", "--scaled"] => Ok(Self::Only(Backend::Docker(Layout::Scaled))),
            _ => Err(Failure("up takes --docker, --native or --scaled, --yes and --no-build.".to_owned())),
        }
    }
}

/// Starts what is not running yet and waits until everything is ready.
pub(crate) async fn up(settings: &Settings, words: &[&str]) -> Outcome {
    let Options { wish, agreed, build } = Options::parse(words)?;
    let last = Backend::of_checkout()?;
    let is_up = last.is_up(settings).await?;
    let choice = match wish {
        Wish::Only(backend) => backend,
        Wish::Any if is_up => last,
        // Parts that are named are meant for processes of this machine.
        Wish::Any if settings.names_parts() => Backend::Native,
        Wish::Any => match docker::answers().await {
            Ok(()) => Backend::Docker(Layout::Single),
            Err(docker::NoEngine::NotInstalled) => Backend::Native,
            Err(docker::NoEngine::Silent(why)) => {
                eprintln!("Docker is installed, and its engine cannot be used, so the system is run natively: {why}\n");
                Backend::Native
            }
        },
    };
    if is_up && choice != last {
        return Err(Failure(format!("The system is up already, {last}. Stop that one first: just down")));
    }
    if let Backend::Docker(layout) = choice {
        let prepared = async {
            let docker = Docker::find_for_up(layout).await?;
            if build {
                docker.fetch_images().await?;
            }
            Ok::<_, Failure>(docker)
        };
        match prepared.await {
            Ok(docker) => {
                choice.remember()?;
                return docker.up(settings, build).await;
            }
            Err(failure) if wish == Wish::Only(choice) => return Err(failure),
            Err(Failure(why)) => {
                eprintln!("{why}\n\nSo the system is run natively. (just up --docker would have stopped here.)\n");
            }
        }
    }
    Backend::Native.remember()?;
    if build {
        native::build().await?;
    }
    native::up(settings, agreed).await
}

/// The engine that runs the system of this checkout; none if it runs natively.
pub(crate) async fn docker_of_checkout() -> Outcome<Option<Docker>> {
    match Backend::of_checkout()? {
        Backend::Native => Ok(None),
        Backend::Docker(layout) => Docker::find(layout).await.map(Some),
    }
}

/// Stops everything; data stay.
pub(crate) async fn down(settings: &Settings) -> Outcome {
    match Backend::of_checkout()? {
        Backend::Native => native::down(settings).await,
        Backend::Docker(layout) => Docker::find(layout).await?.down().await,
    }
}

/// Shows what runs.
pub(crate) async fn ps(settings: &Settings) -> Outcome {
    let parts = match Backend::of_checkout()? {
        Backend::Native => native::ps(settings).await?,
        Backend::Docker(layout) => Docker::find(layout).await?.ps().await?,
    };
    show::table(&parts);
    Ok(())
}

/// Shows the logs.
pub(crate) async fn logs(words: &[&str]) -> Outcome {
    match Backend::of_checkout()? {
        Backend::Native => logs::run(words, native::logs()?),
        Backend::Docker(layout) => logs::run(words, Docker::find(layout).await?.logs().await?),
    }
}

/// Kills a part as a crash does; `up` brings it back.
pub(crate) async fn kill(settings: &Settings, part: &str) -> Outcome {
    match Backend::of_checkout()? {
        Backend::Native => native::kill(settings, part).await,
        Backend::Docker(layout) => Docker::find(layout).await?.kill(part).await,
    }
}

/// Where the system that is up is reached.
pub(crate) async fn addresses(settings: &Settings) -> Outcome<Addresses> {
    let backend = Backend::of_checkout()?;
    if !backend.is_up(settings).await? {
        return Err(Failure("Nothing is running: just up".to_owned()));
    }
    match backend {
        Backend::Native => Ok(Addresses::of_single(settings)),
        Backend::Docker(layout) => Docker::find(layout).await?.addresses(settings).await,
    }
}

/// Runs a command of patient-service, with the settings that the service of this system has.
pub(crate) async fn run_patient_service(settings: &Settings, words: &[&str]) -> Outcome<Output> {
    match Backend::of_checkout()? {
        Backend::Native => native::run_patient_service(settings, words).await,
        Backend::Docker(layout) => Docker::find(layout).await?.run_patient_service(words).await,
    }
}

/// A client of every analytics-service of the system.
pub(crate) fn analytics(settings: &Settings) -> Outcome<Analytics> {
    let scaled = Backend::of_checkout()? == Backend::Docker(Layout::Scaled);
    Ok(Analytics::new(settings.analytics_addresses(scaled)))
}

/// Rebuilds analytics' state from the topic.
pub(crate) async fn rebuild_analytics(settings: &Settings, anyway: bool) -> Outcome {
    let runner = match Backend::of_checkout()? {
        Backend::Native => Runner::Native,
        Backend::Docker(layout) => Runner::Docker(Docker::find(layout).await?),
    };
    rebuild::run(settings, &runner, &analytics(settings)?, anyway).await
}

/// Stops everything and deletes its data, once the user has agreed.
pub(crate) async fn reset(settings: &Settings, agreed: bool) -> Outcome {
    let backend = Backend::of_checkout()?;
    let place = match backend {
        Backend::Native => home::directory()?.display().to_string(),
        Backend::Docker(_) => "the volumes of its containers".to_owned(),
    };
    let given = backend == Backend::Native && settings.database_url.is_some();
    if given {
        println!("The databases on the server of DATABASE_URL stay as they are.");
    }
    if !agreed {
        let what =
            if given { "everything else of this system" } else { "every patient, account and event of this system" };
        print!("This deletes {what}, in {place}.\nType yes to go on: ");
        stdout().flush()?;
        let mut answer = String::new();
        stdin().lock().read_line(&mut answer)?;
        if answer.trim() != "yes" {
            return Err(Failure("Nothing was deleted.".to_owned()));
        }
    }
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
    fn up_takes_one_wish() {
        let parsed = |words: &[&str]| {
            let options = Options::parse(words).unwrap();
            (options.wish, options.agreed, options.build)
        };
        let native = Wish::Only(Backend::Native);
        assert_eq!(parsed(&[]), (Wish::Any, false, true));
        assert_eq!(parsed(&["--native"]), (native, false, true));
        assert_eq!(parsed(&["--yes", "--native"]), (native, true, true));
        assert_eq!(parsed(&["--no-build"]), (Wish::Any, false, false));
        let scaled = Wish::Only(Backend::Docker(Layout::Scaled));
        assert_eq!(parsed(&["--docker", "--scaled"]), (scaled, false, true));
        for wrong in [&["--native", "--docker"][..], &["--nativ"], &["--native", "--scaled"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
