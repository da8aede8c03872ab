//! The system in containers, run by Docker Compose.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use smol::lock::OnceCell;
use testbed::{
    Process,
    compose::{id_and_checkout, ids_in, is_directory},
};
use yaml_rust2::Yaml;

use crate::{
    addresses::Addresses,
    agent_process,
    home::{self, Mode},
    logs::{ContainerLog, Log},
    ports::{self, RequiredPort},
    secure::{Secure, in_containers},
    service_settings::COLLECTOR,
    settings::{self, NATIVE_ONLY, Settings},
    summary,
    terminal::{Component, step},
};

mod command;
mod compose_config;
mod containers;
mod engine;
mod images;
mod mounts;
mod settings_file;

use command::{OLDEST_COMPOSE, compose_version, output_within, run, run_both, run_with, variable};
use compose_config::active_services;
use containers::{Container, inspect};
pub(crate) use engine::{EngineError, check_engine};

/// Time for a subcommand of patient-service, which waits for the outcome of what it resubmits.
const SUBCOMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for our images to be built.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);
/// Time for `docker compose up`, in which containers wait for the health of others, and `docker compose down`.
const COMPOSE_TIMEOUT: Duration = Duration::from_secs(300);
/// Time after that for the last containers to become healthy.
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The endpoint to which the console forwards telemetry with the profile `observability`.
const COLLECTOR_OF_PROFILE: &str = "http://observability:4318";
/// The filter for patient-service's containers.
const SERVICE_LABEL: &str = "label=com.docker.compose.service=patient-service";
/// The variable with the project name of Compose.
const PROJECT: &str = "COMPOSE_PROJECT_NAME";
/// The variable with the active profiles of Compose.
const PROFILES: &str = "COMPOSE_PROFILES";
/// The name of analytics-service, and the prefix of the name of the second one.
const ANALYTICS: &str = "analytics-service";

/// How many replicas there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One of each.
    Single,
    /// Several behind a balancer, by docker-compose.scale.yaml.
    Scaled,
}

impl Layout {
    /// The analytics-services.
    fn analytics_services(self) -> &'static [&'static str] {
        const ALL: [&str; 3] = [ANALYTICS, "analytics-service-2", "analytics-service-3"];
        match self {
            Self::Single => &ALL[..1],
            Self::Scaled => &ALL,
        }
    }
}

/// A Docker engine with Compose.
#[derive(Debug)]
pub(crate) struct Docker {
    /// `docker compose`, or `docker-compose`.
    compose: &'static [&'static str],
    layout: Layout,
    /// Variables for Compose besides our own environment.
    environment: BTreeMap<String, String>,
    /// See [`services`](Self::services).
    services: OnceCell<Vec<Yaml>>,
}

impl Docker {
    /// Finds the engine and Compose, for the system that `up` has started: with the saved settings, whatever our environment
    /// is.
    ///
    /// # Errors
    /// If one is missing.
    pub(crate) async fn find(layout: Layout) -> Result<Self> {
        let mut saved = settings::saved()?.unwrap_or_default();
        if env::var(PROJECT).is_ok_and(|name| !name.is_empty()) {
            saved.remove(PROJECT);
        }
        Self::find_with(layout, saved).await
    }

    /// Finds the engine and Compose, for `up`: with the settings in our environment.
    ///
    /// # Errors
    /// If one is missing.
    pub(crate) async fn find_for_up(layout: Layout) -> Result<Self> {
        Self::find_with(layout, BTreeMap::new()).await
    }

    async fn find_with(layout: Layout, mut environment: BTreeMap<String, String>) -> Result<Self> {
        match check_engine().await {
            Ok(()) => {}
            Err(EngineError::NotInstalled) => return Err(anyhow!("Docker is not installed.")),
            Err(EngineError::Unreachable(error)) => return Err(anyhow!("No Docker engine responds: {error}")),
        }
        let mut reasons = Vec::new();
        for compose in [&["docker", "compose"][..], &["docker-compose"]] {
            let arguments: Vec<_> = compose[1..].iter().copied().chain(["version", "--short"]).collect();
            let reason = match run(compose[0], &arguments).await {
                Ok(version) if compose_version(&version) >= Some(OLDEST_COMPOSE) => {
                    environment.extend(in_containers::variables(&variable(&environment, PROFILES))?);
                    return Ok(Self { compose, layout, environment, services: OnceCell::new() });
                }
                Ok(version) => format!("{} has version {}", compose.join(" "), version.trim()),
                Err(error) => error.to_string(),
            };
            reasons.push(reason);
        }
        Err(anyhow!("There is a Docker engine, but no Docker Compose 1.28 or later:\n{}", reasons.join("\n")))
    }

    /// Pulls the images that are missing and not built by us.
    pub(crate) async fn fetch_images(&self) -> Result<()> {
        let mut images = images::bases(|name| env::var(name).ok())?;
        images.extend(images::of_services(self.services().await?));
        images::fetch(&images).await
    }

    /// Builds our images if `build`, starts what is not running and waits until everything is ready.
    pub(crate) async fn up(&self, settings: &Settings, build: bool) -> Result<()> {
        let started = Instant::now();
        let secure = Secure::of_checkout()?;
        if let Some(secure) = &secure {
            step("Preparing certificates and users", "", secure.make_files()).await?;
            secure.write_container_files()?;
        }
        let before = self.containers().await?;
        self.reject_other_checkout(&before)?;
        self.check_ports(settings, &before)?;
        mounts::check(self.services().await?)?;
        if build {
            let work = self.run_compose(&["build"], BUILD_TIMEOUT);
            step("Building the images", "(the first time it compiles everything)", work).await?;
        }
        self.pass_settings(settings, secure.as_ref()).await?;
        Settings::save(&NATIVE_ONLY)?;
        let start = async {
            self.start_missing().await?;
            self.until_ready().await
        };
        // Beside the start, because services wait for the permissions.
        let grant = async {
            match &secure {
                Some(secure) => Box::pin(secure.grant_permissions(settings, true)).await,
                None => Ok(()),
            }
        };
        let start = async { smol::future::try_zip(start, grant).await.map(drop) };
        if let Err(error) = step("Starting the containers", "", start).await {
            return Err(anyhow!("{error}{}", self.logs_of_unready().await));
        }
        agent_process::start(settings).await?;
        summary::print(settings, self.layout == Layout::Scaled, secure.as_ref().map(|secure| (secure, true)));
        println!("\n  Ready after {:.1} s, in containers. Data are in their volumes.", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Stops everything; the volumes stay.
    pub(crate) async fn down(&self) -> Result<()> {
        agent_process::stop(&home::directory()?).await;
        if self.containers().await?.is_empty() {
            println!("Nothing is running.");
            return Ok(());
        }
        step("Stopping the containers", "", self.run_compose(&["down", "--remove-orphans"], COMPOSE_TIMEOUT)).await
    }

    /// Stops everything and deletes the volumes.
    pub(crate) async fn delete(&self) -> Result<()> {
        agent_process::stop(&home::directory()?).await;
        let delete = self.run_compose(&["down", "--volumes", "--remove-orphans"], COMPOSE_TIMEOUT);
        step("Removing the containers and volumes", "", delete).await
    }

    /// What runs.
    pub(crate) async fn ps(&self) -> Result<Vec<Component>> {
        let containers = self.containers().await?;
        let running: Vec<_> = containers.iter().filter(|one| one.is_running()).map(|one| one.id.as_str()).collect();
        let mut memory = String::new();
        if !running.is_empty() {
            let mut arguments = vec!["stats", "--no-stream", "--format", "{{.ID}} {{.MemUsage}}"];
            arguments.extend(running);
            memory = run("docker", &arguments).await?;
        }
        let component = |container: &Container| {
            let used = memory.lines().find_map(|line| line.strip_prefix(container.id.as_str()));
            Component {
                name: name(container, &containers),
                process: container.id.clone(),
                state: if container.is_ready() { "ready".to_owned() } else { state(container) },
                memory: used.and_then(|used| used.split('/').next()).unwrap_or("-").trim().to_owned(),
                address: container.published.values().cloned().collect::<Vec<_>>().join(" "),
            }
        };
        Ok(containers.iter().map(component).collect())
    }

    /// The log of each container.
    pub(crate) async fn logs(&self) -> Result<Vec<Box<dyn Log>>> {
        let containers = self.containers().await?;
        let log = |container: &Container| -> Box<dyn Log> {
            Box::new(ContainerLog::new(container.service.clone(), container.id.clone()))
        };
        Ok(containers.iter().map(log).collect())
    }

    /// Kills the first container of a service, as a crash does.
    pub(crate) async fn kill(&self, service: &str) -> Result<()> {
        let containers = self.containers().await?;
        let Some(container) = containers.iter().find(|one| one.service == service && one.is_running()) else {
            return Err(anyhow!("No container of {service:?} is running."));
        };
        run("docker", &["kill", &container.id]).await.map(drop)
    }

    /// The ids of every container of a service.
    pub(crate) async fn ids_of(&self, service: &str) -> Result<Vec<String>> {
        let containers = self.containers().await?;
        let ids: Vec<_> = containers.into_iter().filter(|one| one.service == service).map(|one| one.id).collect();
        if ids.is_empty() { Err(anyhow!("There is no container of {service:?}.")) } else { Ok(ids) }
    }

    /// Runs `docker start`, `pause` or `unpause` for these containers. To unpause one that runs is no error.
    pub(crate) async fn control(ids: &[String], command: &str) -> Result<()> {
        for id in ids {
            match run("docker", &[command, id]).await {
                Err(error) if command == "unpause" && error.to_string().contains("is not paused") => {}
                result => drop(result?),
            }
        }
        Ok(())
    }

    /// Unpauses every paused container.
    pub(crate) async fn unpause_all(&self) -> Result<()> {
        for paused in self.containers().await?.iter().filter(|one| one.status == "paused") {
            run("docker", &["unpause", &paused.id]).await?;
        }
        Ok(())
    }

    /// Stops every analytics-service, copies each state to a directory below `to`, and deletes it.
    pub(crate) async fn copy_and_delete_analytics_state(&self, to: &Path) -> Result<Vec<PathBuf>> {
        let mut containers = self.containers().await?;
        containers.retain(|one| one.service.starts_with(ANALYTICS));
        let take = async {
            let mut copies = Vec::new();
            for container in &containers {
                run("docker", &["stop", &container.id]).await?;
                let copy = to.join(&container.service);
                let from = format!("{}:/var/lib/{ANALYTICS}", container.id);
                run("docker", &["cp", &from, &copy.to_string_lossy()]).await?;
                copies.push(copy);
            }
            for container in &containers {
                run("docker", &["rm", &container.id]).await?;
                for volume in &container.volumes {
                    run("docker", &["volume", "rm", volume]).await?;
                }
            }
            Ok::<_, anyhow::Error>(copies)
        };
        step("Moving the state", "", take).await
    }

    /// Starts the analytics-services whose state was deleted. They may not be ready afterwards. Nothing else is touched: Compose
    /// would replace a container whose settings are other ones by our environment.
    pub(crate) async fn start_analytics(&self) -> Result<()> {
        let command = [&["up", "-d", "--no-build", "--no-deps"], self.layout.analytics_services()].concat();
        step("Starting the containers", "", self.run_compose(&command, COMPOSE_TIMEOUT)).await
    }

    async fn start_missing(&self) -> Result<()> {
        // An interrupted `just chaos` may have left a container paused, which would never become ready.
        self.unpause_all().await?;
        self.run_compose(&["up", "-d", "--no-build"], COMPOSE_TIMEOUT).await
    }

    /// Runs a subcommand of patient-service in one of its containers.
    pub(crate) async fn run_patient_service(&self, arguments: &[&str]) -> Result<Output> {
        // The engine finds it at once, Compose after seconds.
        let running = run("docker", &["ps", "--filter", SERVICE_LABEL, "--format", &id_and_checkout()]).await?;
        let here = env::current_dir()?.canonicalize()?;
        if let Some(container) = ids_in(&running, &here).next() {
            let arguments = [&["exec", container, "patient-service"], arguments].concat();
            return output_within(SUBCOMMAND_TIMEOUT, "docker", &arguments, &BTreeMap::new()).await;
        }
        let arguments = self.arguments(&[&["exec", "-T", "patient-service", "patient-service"], arguments].concat())?;
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        output_within(SUBCOMMAND_TIMEOUT, self.compose[0], &arguments, &self.environment).await
    }

    /// Whether anything of the system runs.
    pub(crate) async fn is_up(&self) -> Result<bool> {
        Ok(self.containers().await?.iter().any(Container::is_running))
    }

    /// The addresses of every replica, and of patient-service through the balancer.
    pub(crate) async fn addresses(&self, settings: &Settings) -> Result<Addresses> {
        if Mode::of_checkout()? == Mode::Secure {
            return Ok(Addresses::of_single(settings, Mode::Secure));
        }
        let containers = self.containers().await?;
        let published = |service: &str, port: u16| {
            let replicas = containers.iter().filter(|one| one.service.starts_with(service));
            replicas.filter_map(|one| one.published.get(&port).cloned()).collect::<Vec<_>>()
        };
        Ok(Addresses {
            patients: settings.patient_address(),
            patient_metrics: published("patient-service", 4000),
            billing_metrics: published("billing-service", 4001),
            analytics: published("analytics-service", 4002),
            analytics_metrics: published("analytics-service", 4002),
        })
    }

    /// # Errors
    /// If the containers belong to another checkout with the same project name: `up` would replace them.
    fn reject_other_checkout(&self, containers: &[Container]) -> Result<()> {
        let here = env::current_dir()?.canonicalize()?;
        match containers.iter().find(|one| !one.checkout.is_empty() && !is_directory(&one.checkout, &here)) {
            Some(other) => Err(anyhow!(
                "The containers of this project name belong to {}. Stop them there, or choose another name here: \
                 COMPOSE_PROJECT_NAME=... just up",
                other.checkout
            )),
            None => Ok(()),
        }
    }

    fn check_ports(&self, settings: &Settings, containers: &[Container]) -> Result<()> {
        let mut ports = vec![
            (settings.patient_port, "PATIENT_PORT"),
            (settings.billing_grpc_port, "BILLING_GRPC_PORT"),
            (settings.analytics_port, "ANALYTICS_PORT"),
            (settings.kafka_port, "KAFKA_PORT"),
            (settings.console_port, "CONSOLE_PORT"),
        ];
        match self.layout {
            Layout::Single => ports.push((settings.billing_port, "BILLING_PORT")),
            Layout::Scaled => ports.extend([
                (settings.analytics_2_port, "ANALYTICS_2_PORT"),
                (settings.analytics_3_port, "ANALYTICS_3_PORT"),
            ]),
        }
        if self.has_profile(in_containers::PROFILE) {
            ports.push((settings.gateway_port, "GATEWAY_PORT"));
        }
        if Mode::of_checkout()? == Mode::Secure {
            ports.extend([
                (settings.auth_port, "AUTH_PORT"),
                (settings.patient_operations_port, "PATIENT_OPERATIONS_PORT"),
                (settings.billing_operations_port, "BILLING_OPERATIONS_PORT"),
                (settings.analytics_operations_port, "ANALYTICS_OPERATIONS_PORT"),
            ]);
        }
        let ours = |port| containers.iter().any(|one| one.is_running() && one.publishes(port));
        ports::check_free(ports.into_iter().map(|(port, variable)| RequiredPort { port, variable, ours: ours(port) }))
    }

    async fn until_ready(&self) -> Result<()> {
        let end = Instant::now() + HEALTHY_TIMEOUT;
        loop {
            let containers = self.containers().await?;
            let unready: Vec<_> = containers.iter().filter(|one| !one.is_ready()).collect();
            if unready.is_empty() && !containers.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                let names = unready.iter().map(|one| format!("{} is {}", name(one, &containers), state(one)));
                return Err(anyhow::Error::msg(names.collect::<Vec<_>>().join(", ")));
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    /// The last log lines of the containers that are not ready.
    async fn logs_of_unready(&self) -> String {
        let mut text = String::new();
        let containers = self.containers().await.unwrap_or_default();
        for container in containers.iter().filter(|one| !one.is_ready() && one.status != "created") {
            let _ = write!(text, "\n{} is {}:", name(container, &containers), state(container));
            for line in run_both("docker", &["logs", "--tail", "15", &container.id]).await.unwrap_or_default().lines() {
                let _ = write!(text, "\n  | {line}");
            }
        }
        text
    }

    async fn containers(&self) -> Result<Vec<Container>> {
        let ids = self.query(&["ps", "-a", "-q"]).await?;
        inspect(&ids.split_whitespace().collect::<Vec<_>>()).await
    }

    /// The arguments of a Compose command, with `compose` first if the program is `docker`, and our files.
    fn arguments(&self, command: &[&str]) -> Result<Vec<String>> {
        let settings = settings_file::path()?;
        let settings = settings.is_file().then(|| settings.display().to_string());
        let files: Vec<String> = match self.layout {
            // Compose finds docker-compose.yaml and the override file by itself if no `-f` is given.
            Layout::Single if settings.is_none() && Mode::of_checkout()? == Mode::Open => Vec::new(),
            Layout::Single => match variable(&self.environment, "COMPOSE_FILE") {
                files if files.is_empty() => {
                    vec!["docker-compose.yaml".to_owned(), "docker-compose.override.yaml".to_owned()]
                }
                files => files.split(':').map(str::to_owned).collect(),
            },
            Layout::Scaled => vec!["docker-compose.yaml".to_owned(), "docker-compose.scale.yaml".to_owned()],
        };
        let secure = (Mode::of_checkout()? == Mode::Secure).then(|| in_containers::COMPOSE_FILE.to_owned());
        let files = files.into_iter().chain(secure).chain(settings).flat_map(|file| ["-f".to_owned(), file]);
        let compose = self.compose[1..].iter().map(|word| (*word).to_owned());
        Ok(compose.chain(files).chain(command.iter().map(|word| (*word).to_owned())).collect())
    }

    /// The active profiles of Compose, separated by commas.
    fn profiles(&self) -> String {
        variable(&self.environment, PROFILES)
    }

    fn has_profile(&self, name: &str) -> bool {
        self.profiles().split(',').any(|profile| profile == name)
    }

    /// The services of the compose files, without those of inactive profiles. Compose is asked once: `up` needs them twice before
    /// it adds settings, which are in no file of the checkout.
    async fn services(&self) -> Result<&[Yaml]> {
        let read = async || active_services(&self.query(&["config"]).await?, &self.profiles());
        Ok(self.services.get_or_try_init(read).await?.as_slice())
    }

    /// The output of a Compose command.
    async fn query(&self, command: &[&str]) -> Result<String> {
        let arguments = self.arguments(command)?;
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        run_with(self.compose[0], &arguments, &self.environment).await
    }

    /// Runs a Compose command. Its output goes to a log, whose end is part of the error.
    async fn run_compose(&self, command: &[&str], limit: Duration) -> Result<()> {
        let mut environment =
            vec![("BUILDKIT_PROGRESS", "plain".to_owned()), (agent_process::TOKEN, agent_process::token()?)];
        if command.contains(&"down") {
            environment.push((PROFILES, "gateway,tools,observability".to_owned()));
        } else if self.has_profile("observability") && variable(&self.environment, COLLECTOR).is_empty() {
            environment.push((COLLECTOR, COLLECTOR_OF_PROFILE.to_owned()));
        }
        let name = format!("{} {}", self.compose.join(" "), command[0]);
        Ok(Process::builder(name, self.compose[0], home::directory()?.join("docker.log"))
            .args(self.arguments(command)?)
            .envs(&self.environment)
            .envs(environment)
            .run(limit)
            .await?)
    }
}

/// The name of a container in messages: its service, with a number if there are several replicas.
fn name(container: &Container, all: &[Container]) -> String {
    let replicas = all.iter().filter(|one| one.service == container.service).count();
    if replicas == 1 { container.service.clone() } else { format!("{} #{}", container.service, container.number) }
}

fn state(container: &Container) -> String {
    container.health.clone().filter(|_| container.status == "running").unwrap_or_else(|| container.status.clone())
}
