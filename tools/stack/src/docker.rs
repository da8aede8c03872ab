//! The system in containers: what `docker compose` is told, and what the engine tells of it.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Map, Value as Json, json};
use testbed::{Process, service::settings_in};

use crate::{
    Failure, Outcome,
    addresses::Addresses,
    agent_process, home,
    logs::{ContainerLog, Log},
    port_owner::{self, Wanted},
    private_file, service_settings,
    settings::{self, Settings},
    show::{Part, step},
    summary,
};

mod containers;
mod images;

use containers::{Container, inspect};

/// Time for the engine to answer a question. Compose 1 is a Python program, which takes a minute to start on a machine that
/// is very busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// Time for a command of patient-service, which waits for the outcome of what it resubmits.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Time to tell that there is an engine at all.
const ENGINE_LIMIT: Duration = Duration::from_secs(5);
/// Time for our images to be built, with everything to compile.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);
/// Time for containers to be started, each once that it waits for is healthy, or stopped in order.
const COMPOSE_LIMIT: Duration = Duration::from_secs(300);
/// Time for the rest to become healthy.
const HEALTHY_LIMIT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Compose knows profiles since this version.
const OLDEST_COMPOSE: (u32, u32) = (1, 28);
/// Where the console passes what the services export on to when the profile `observability` is on.
const COLLECTOR: &str = "http://observability:4318";
/// The name under which Compose knows the containers.
const PROJECT: &str = "COMPOSE_PROJECT_NAME";
const COLLECTOR_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// In the folder of the data: a compose file with the settings that `up` was given for the services.
const SETTINGS_FILE: &str = "docker-compose.settings.json";
/// Our services.
const SERVICES: [&str; 3] = ["patient-service", "billing-service", ANALYTICS];

/// The service that keeps a state of its own, and the beginning of the names of its like.
const ANALYTICS: &str = "analytics-service";

/// How many containers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One of each.
    Single,
    /// Replicas behind a balancer, as docker-compose.scale.yaml says.
    Scaled,
}

/// An engine that answers, with its compose.
#[derive(Clone, Debug)]
pub(crate) struct Docker {
    /// `docker compose`, or `docker-compose`.
    compose: &'static [&'static str],
    layout: Layout,
    /// What Compose is given besides our own environment.
    environment: BTreeMap<String, String>,
}

/// Why there is no engine.
#[derive(Clone, Debug)]
pub(crate) enum NoEngine {
    /// There is no `docker`.
    NotInstalled,
    /// `docker` does not reach it, and says this.
    Silent(String),
}

/// Whether a Docker engine answers.
pub(crate) async fn answers() -> Result<(), NoEngine> {
    let question = smol::process::Command::new("docker")
        .args(["version", "--format", "{{.Server.Version}}"])
        .kill_on_drop(true)
        .output();
    match runtime::timeout(ENGINE_LIMIT, question).await {
        Err(_) => Err(NoEngine::Silent(format!("docker does not answer within {ENGINE_LIMIT:?}"))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(NoEngine::NotInstalled),
        Ok(Err(error)) => Err(NoEngine::Silent(format!("docker: {error}"))),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(NoEngine::Silent(words_of(&output.stderr))),
    }
}

impl Docker {
    /// Looks for them, to do something with the system that `up` has started: with its ports, whatever the environment
    /// says now.
    ///
    /// # Errors
    /// If one is missing.
    pub(crate) async fn find(layout: Layout) -> Outcome<Self> {
        let mut environment = settings::kept()?.unwrap_or_default();
        if env::var(PROJECT).is_ok_and(|name| !name.is_empty()) {
            environment.remove(PROJECT);
        }
        Ok(Self { environment, ..Self::find_for_up(layout).await? })
    }

    /// Looks for them, to start the system as the environment says.
    ///
    /// # Errors
    /// If one is missing.
    pub(crate) async fn find_for_up(layout: Layout) -> Outcome<Self> {
        match answers().await {
            Ok(()) => {}
            Err(NoEngine::NotInstalled) => return Err(Failure("Docker is not installed.".to_owned())),
            Err(NoEngine::Silent(why)) => return Err(Failure(format!("No Docker engine answers: {why}"))),
        }
        let mut reasons = Vec::new();
        for compose in [&["docker", "compose"][..], &["docker-compose"]] {
            let arguments: Vec<_> = compose[1..].iter().copied().chain(["version", "--short"]).collect();
            let reason = match run(compose[0], &arguments).await {
                Ok(said) if compose_version(&said) >= Some(OLDEST_COMPOSE) => {
                    return Ok(Self { compose, layout, environment: BTreeMap::new() });
                }
                Ok(said) => format!("{} is of version {}", compose.join(" "), said.trim()),
                Err(Failure(why)) => why,
            };
            reasons.push(reason);
        }
        Err(Failure(format!(
            "A Docker engine answers, but there is no Docker Compose 1.28 or later:\n{}",
            reasons.join("\n")
        )))
    }

    /// Pulls the images that are neither here nor ours.
    pub(crate) async fn fetch_images(&self) -> Outcome {
        let mut images = images::bases(|name| env::var(name).ok())?;
        let profiles = env::var("COMPOSE_PROFILES").unwrap_or_default();
        images.extend(images::of_config(&self.ask(&["config"]).await?, &profiles.split(',').collect::<Vec<_>>())?);
        images::fetch(&images).await
    }

    /// Starts what is not running and waits until everything is ready. `build`: with our images built anew first.
    pub(crate) async fn up(&self, settings: &Settings, build: bool) -> Outcome {
        let started = Instant::now();
        let before = self.containers().await?;
        self.refuse_foreign(&before)?;
        self.check_ports(settings, &before)?;
        if build {
            let work = self.work(&["build"], BUILD_LIMIT);
            step("Building the images", "(the first time it compiles everything)", work).await?;
        }
        self.pass_settings().await?;
        Settings::keep()?;
        let start = async {
            self.start_missing().await?;
            self.until_ready().await
        };
        if let Err(Failure(why)) = step("Starting the containers", "", start).await {
            return Err(Failure(format!("{why}{}", self.last_lines_of_unready().await)));
        }
        agent_process::start(settings).await?;
        summary::print(settings, self.layout == Layout::Scaled);
        println!("\n  Ready after {:.1} s, in containers. Data are in their volumes.", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Stops everything; the volumes stay.
    pub(crate) async fn down(&self) -> Outcome {
        agent_process::stop(&home::directory()?).await;
        if self.containers().await?.is_empty() {
            println!("Nothing is running.");
            return Ok(());
        }
        step("Stopping the containers", "", self.work(&["down", "--remove-orphans"], COMPOSE_LIMIT)).await
    }

    /// Stops everything and deletes the volumes.
    pub(crate) async fn delete(&self) -> Outcome {
        agent_process::stop(&home::directory()?).await;
        let delete = self.work(&["down", "--volumes", "--remove-orphans"], COMPOSE_LIMIT);
        step("Removing the containers and volumes", "", delete).await
    }

    /// What runs.
    pub(crate) async fn ps(&self) -> Outcome<Vec<Part>> {
        let containers = self.containers().await?;
        let running: Vec<_> = containers.iter().filter(|one| one.is_running()).map(|one| one.id.as_str()).collect();
        let mut memory = String::new();
        if !running.is_empty() {
            let mut arguments = vec!["stats", "--no-stream", "--format", "{{.ID}} {{.MemUsage}}"];
            arguments.extend(running);
            memory = run("docker", &arguments).await?;
        }
        let part = |container: &Container| {
            let used = memory.lines().find_map(|line| line.strip_prefix(container.id.as_str()));
            Part {
                name: name(container, &containers),
                process: container.id.clone(),
                state: if container.is_ready() { "ready".to_owned() } else { state(container) },
                memory: used.and_then(|used| used.split('/').next()).unwrap_or("-").trim().to_owned(),
                place: container.published.values().cloned().collect::<Vec<_>>().join(" "),
            }
        };
        Ok(containers.iter().map(part).collect())
    }

    /// The log of each container.
    pub(crate) async fn logs(&self) -> Outcome<Vec<Box<dyn Log>>> {
        let containers = self.containers().await?;
        let log = |container: &Container| -> Box<dyn Log> {
            Box::new(ContainerLog::new(container.service.clone(), container.id.clone()))
        };
        Ok(containers.iter().map(log).collect())
    }

    /// Kills the first container of a service, as a crash does.
    pub(crate) async fn kill(&self, service: &str) -> Outcome {
        let containers = self.containers().await?;
        let Some(container) = containers.iter().find(|one| one.service == service && one.is_running()) else {
            return Err(Failure(format!("No container of {service:?} is running.")));
        };
        run("docker", &["kill", &container.id]).await.map(drop)
    }

    /// Has the engine do something to every container of a service.
    pub(crate) async fn tell(&self, service: &str, verb: &str) -> Outcome {
        let containers = self.containers().await?;
        let found: Vec<_> = containers.iter().filter(|one| one.service == service).collect();
        if found.is_empty() {
            return Err(Failure(format!("There is no container of {service:?}.")));
        }
        for container in found {
            run("docker", &[verb, &container.id]).await?;
        }
        Ok(())
    }

    /// Wakes the containers that stand still.
    pub(crate) async fn unpause_all(&self) -> Outcome {
        for paused in self.containers().await?.iter().filter(|one| one.status == "paused") {
            run("docker", &["unpause", &paused.id]).await?;
        }
        Ok(())
    }

    /// Stops every analytics-service, copies its state to a folder of its own in `to`, and deletes it.
    pub(crate) async fn take_analytics_state(&self, to: &Path) -> Outcome<Vec<PathBuf>> {
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
            Ok::<_, Failure>(copies)
        };
        step("Taking the state away", "", take).await
    }

    /// Starts what is missing; it need not be ready yet.
    pub(crate) async fn start_again(&self) -> Outcome {
        step("Starting the containers", "", self.start_missing()).await
    }

    /// Writes the settings that the services are given into a file that is laid over the others.
    async fn pass_settings(&self) -> Outcome {
        let mut known = BTreeMap::new();
        for service in SERVICES {
            let help = self.ask(&["run", "--rm", "--no-deps", "-T", service, "--help"]).await?;
            let settings = settings_in(&help);
            if settings.is_empty() {
                return Err(Failure(format!("{service} --help lists no settings, but says:\n{help}")));
            }
            known.insert(service.to_owned(), settings);
        }
        let decided: &[_] = match self.layout {
            Layout::Single => &[],
            Layout::Scaled => &[("PARTITIONS", "each analytics-service reads its own")],
        };
        let mut chosen = service_settings::choose(&known, decided, |name| env::var(name).ok());
        for name in ["DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "BROKER"] {
            if env::var(name).is_ok_and(|value| !value.is_empty()) {
                chosen.refuse(name, "in containers, the system has its own; --native uses it");
            }
        }
        chosen.tell();
        // Compose itself gives it to the console, which the services export to.
        chosen.passed.values_mut().for_each(|settings| drop(settings.remove(COLLECTOR_VARIABLE)));
        chosen.passed.retain(|_, settings| !settings.is_empty());
        service_settings::keep(&chosen.passed)?;
        let file = home::directory()?.join(SETTINGS_FILE);
        if chosen.passed.is_empty() {
            let _ = fs::remove_file(file);
            return Ok(());
        }
        private_file::write(&file, &overlay(&chosen.passed, self.layout).to_string())
    }

    async fn start_missing(&self) -> Outcome {
        // One that a broken-off `just chaos` has left so would never become ready.
        self.unpause_all().await?;
        self.work(&["up", "-d", "--no-build"], COMPOSE_LIMIT).await
    }

    /// Runs a command of patient-service in its container.
    pub(crate) async fn run_patient_service(&self, words: &[&str]) -> Outcome<std::process::Output> {
        let arguments = self.arguments(&[&["exec", "-T", "patient-service", "patient-service"], words].concat())?;
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        output_within(COMMAND_LIMIT, self.compose[0], &arguments, &self.environment).await
    }

    /// Whether anything of the system runs.
    pub(crate) async fn is_up(&self) -> Outcome<bool> {
        Ok(self.containers().await?.iter().any(Container::is_running))
    }

    /// Where the services are reached: every replica of its own, but patient-service through the balancer.
    pub(crate) async fn addresses(&self, settings: &Settings) -> Outcome<Addresses> {
        let containers = self.containers().await?;
        let published = |service: &str, port: u16| {
            let replicas = containers.iter().filter(|one| one.service.starts_with(service));
            replicas.filter_map(|one| one.published.get(&port).cloned()).collect::<Vec<_>>()
        };
        Ok(Addresses {
            patients: settings.patient_address(),
            patient_replicas: published("patient-service", 4000),
            billing: published("billing-service", 4001),
            analytics: published("analytics-service", 4002),
        })
    }

    /// Another checkout of the same name would have its containers replaced by ours.
    fn refuse_foreign(&self, containers: &[Container]) -> Outcome {
        let here = env::current_dir()?.canonicalize()?;
        match containers.iter().find(|one| !one.checkout.is_empty() && here.as_os_str() != one.checkout.as_str()) {
            Some(foreign) => Err(Failure(format!(
                "Containers of the same name belong to {}. Stop them there, or choose another name here: \
                 COMPOSE_PROJECT_NAME=... just up",
                foreign.checkout
            ))),
            None => Ok(()),
        }
    }

    fn check_ports(&self, settings: &Settings, containers: &[Container]) -> Outcome {
        let mut ports = vec![
            (settings.patient_port, "PATIENT_PORT"),
            (settings.billing_grpc_port, "BILLING_GRPC_PORT"),
            (settings.analytics_port, "ANALYTICS_PORT"),
            (settings.kafka_port, "KAFKA_PORT"),
            (settings.console_port, "CONSOLE_PORT"),
        ];
        ports.push(match self.layout {
            Layout::Single => (settings.billing_port, "BILLING_PORT"),
            Layout::Scaled => (settings.analytics_2_port, "ANALYTICS_2_PORT"),
        });
        let ours = |port| containers.iter().any(|one| one.is_running() && one.publishes(port));
        port_owner::refuse_taken(ports.into_iter().map(|(port, variable)| Wanted { port, variable, ours: ours(port) }))
    }

    async fn until_ready(&self) -> Outcome {
        let end = Instant::now() + HEALTHY_LIMIT;
        loop {
            let containers = self.containers().await?;
            let unready: Vec<_> = containers.iter().filter(|one| !one.is_ready()).collect();
            if unready.is_empty() && !containers.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                let names = unready.iter().map(|one| format!("{} is {}", name(one, &containers), state(one)));
                return Err(Failure(names.collect::<Vec<_>>().join(", ")));
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    /// What the containers that do not work said last.
    async fn last_lines_of_unready(&self) -> String {
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

    async fn containers(&self) -> Outcome<Vec<Container>> {
        let ids = self.ask(&["ps", "-a", "-q"]).await?;
        inspect(&ids.split_whitespace().collect::<Vec<_>>()).await
    }

    /// The arguments that choose our files, after those that make `docker compose` of `docker`.
    fn arguments(&self, words: &[&str]) -> Outcome<Vec<String>> {
        let settings = home::directory()?.join(SETTINGS_FILE);
        let settings = settings.is_file().then(|| settings.display().to_string());
        let files: Vec<String> = match self.layout {
            // With the override file, which Compose finds by itself as long as nobody names others.
            Layout::Single if settings.is_none() => Vec::new(),
            Layout::Single => match env::var("COMPOSE_FILE") {
                Ok(files) if !files.is_empty() => files.split(':').map(str::to_owned).collect(),
                _ => vec!["docker-compose.yaml".to_owned(), "docker-compose.override.yaml".to_owned()],
            },
            Layout::Scaled => vec!["docker-compose.yaml".to_owned(), "docker-compose.scale.yaml".to_owned()],
        };
        let files = files.into_iter().chain(settings).flat_map(|file| ["-f".to_owned(), file]);
        let own = self.compose[1..].iter().map(|word| (*word).to_owned());
        Ok(own.chain(files).chain(words.iter().map(|word| (*word).to_owned())).collect())
    }

    /// Asks compose something.
    async fn ask(&self, words: &[&str]) -> Outcome<String> {
        let arguments = self.arguments(words)?;
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        run_with(self.compose[0], &arguments, &self.environment).await
    }

    /// Lets compose do something; its output goes to a log, the end of which is shown if it fails.
    async fn work(&self, words: &[&str], limit: Duration) -> Outcome {
        let profiles = env::var("COMPOSE_PROFILES").unwrap_or_default();
        let mut environment =
            vec![("BUILDKIT_PROGRESS", "plain".to_owned()), (agent_process::TOKEN, agent_process::token()?)];
        if words.contains(&"down") {
            environment.push(("COMPOSE_PROFILES", "tools,observability".to_owned()));
        } else if profiles.split(',').any(|profile| profile == "observability")
            && env::var(COLLECTOR_VARIABLE).unwrap_or_default().is_empty()
        {
            environment.push((COLLECTOR_VARIABLE, COLLECTOR.to_owned()));
        }
        let name = format!("{} {}", self.compose.join(" "), words[0]);
        Ok(Process::prepare(name, self.compose[0], home::directory()?.join("docker.log"))
            .args(self.arguments(words)?)
            .envs(&self.environment)
            .envs(environment)
            .run(limit)
            .await?)
    }
}

/// The name of a part, numbered where there are several.
fn name(container: &Container, all: &[Container]) -> String {
    let replicas = all.iter().filter(|one| one.service == container.service).count();
    if replicas == 1 { container.service.clone() } else { format!("{} #{}", container.service, container.number) }
}

fn state(container: &Container) -> String {
    container.health.clone().filter(|_| container.status == "running").unwrap_or_else(|| container.status.clone())
}

/// What a program prints.
async fn run(program: &str, arguments: &[&str]) -> Outcome<String> {
    run_with(program, arguments, &BTreeMap::new()).await
}

async fn run_with(program: &str, arguments: &[&str], environment: &BTreeMap<String, String>) -> Outcome<String> {
    let output = output(program, arguments, environment).await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = match words_of(&output.stderr) {
        words if words.is_empty() => output.status.to_string(),
        words => words,
    };
    Err(Failure(format!("{program} {}: {words}", arguments.first().unwrap_or(&""))))
}

/// What a program prints on either of its outputs.
async fn run_both(program: &str, arguments: &[&str]) -> Outcome<String> {
    let output = output(program, arguments, &BTreeMap::new()).await?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

async fn output(
    program: &str,
    arguments: &[&str],
    environment: &BTreeMap<String, String>,
) -> Outcome<std::process::Output> {
    output_within(ANSWER_LIMIT, program, arguments, environment).await
}

async fn output_within(
    limit: Duration,
    program: &str,
    arguments: &[&str],
    environment: &BTreeMap<String, String>,
) -> Outcome<std::process::Output> {
    let output = smol::process::Command::new(program).args(arguments).envs(environment).kill_on_drop(true).output();
    let output = runtime::timeout(limit, output).await;
    let output = output.map_err(|_| Failure(format!("{program} does not answer within {limit:?}.")))?;
    output.map_err(|error| Failure(format!("{program}: {error}")))
}

/// What a program has complained of.
fn words_of(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).trim().to_owned()
}

/// A compose file that gives the services their settings. JSON is YAML, and Compose takes a doubled dollar for one.
fn overlay(passed: &service_settings::ByService, layout: Layout) -> Json {
    let mut services = Map::new();
    for (service, settings) in passed {
        let environment: Map<_, _> =
            settings.iter().map(|(name, value)| (name.clone(), value.replace('$', "$$").into())).collect();
        let environment = json!({ "environment": environment });
        if layout == Layout::Scaled && service == ANALYTICS {
            services.insert(format!("{ANALYTICS}-2"), environment.clone());
        }
        services.insert(service.clone(), environment);
    }
    json!({ "services": services })
}

/// The major and minor number in `2.40.3`, `v2.40.3`, `1.29.2` or a sentence with one of those.
fn compose_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_versions_of_compose() {
        assert!(compose_version("v2.40.3\n") >= Some(OLDEST_COMPOSE));
        assert!(compose_version("1.29.2") >= Some(OLDEST_COMPOSE));
        assert!(compose_version("1.25.0") < Some(OLDEST_COMPOSE));
        assert!(compose_version("Docker Compose version v5.0.1\n") >= Some(OLDEST_COMPOSE));
        assert!(compose_version("unknown") < Some(OLDEST_COMPOSE));
    }

    #[test]
    fn settings_are_laid_over_the_compose_files() {
        let passed = BTreeMap::from([(ANALYTICS.to_owned(), BTreeMap::from([("A".to_owned(), "$1".to_owned())]))]);
        let given = json!({"environment": {"A": "$$1"}});
        assert_eq!(overlay(&passed, Layout::Single), json!({"services": {"analytics-service": given}}));
        let both = json!({"services": {"analytics-service": given, "analytics-service-2": given}});
        assert_eq!(overlay(&passed, Layout::Scaled), both);
    }
}
