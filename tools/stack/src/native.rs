//! The system without containers: PostgreSQL, a broker and our three services as processes that outlive this program. A later
//! run finds them by their pid files.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use testbed::{
    Process, Signal,
    postgres::Cluster,
    service::{self, Launch, Service, binaries},
};

use crate::{
    agent_process, console_export,
    external_databases::Databases,
    home::{self, Mode},
    logs::{FileLog, Log},
    ports::{self, RequiredPort},
    secure::{AUTH_SERVICE, Secure, gateway, quoted},
    service_settings,
    settings::Settings,
    summary,
    terminal::{Component, step},
};

mod broker;
mod databases;
mod launch;

use launch::start;

/// Time for a subcommand of patient-service, which waits for the outcome of what it resubmits.
const SUBCOMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a build of the services.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);
/// It is started first and stopped last, so that it receives all spans.
const CONSOLE: &str = "console";
/// The services, in the order of their start.
pub(crate) const SERVICES: [&str; 3] = ["billing-service", "analytics-service", "patient-service"];
/// The logs of the components, in the data directory.
const LOGS: [(&str, &str); 8] = [
    ("patient-service", "patient-service.log"),
    ("billing-service", "billing-service.log"),
    ("analytics-service", "analytics-service.log"),
    (CONSOLE, "console.log"),
    (AUTH_SERVICE, "auth-service.log"),
    ("gateway", "gateway.log"),
    ("broker", "broker/broker.log"),
    ("postgres", "postgres/postgres.log"),
];

/// Builds the services. The recipe has done so unless it expected them to run in containers. In a debug build of this program,
/// the binaries of the tests are used.
pub(crate) async fn build() -> Result<()> {
    let binaries = binaries()?;
    if !binaries.ends_with("release") || env::var_os("SERVICE_BINARIES").is_some() {
        return Ok(());
    }
    // Where we are, whatever cargo's configuration says. With a target, cargo adds a folder.
    let has_target = env::var_os("CARGO_BUILD_TARGET").is_some_and(|target| !target.is_empty());
    let directory = binaries.ancestors().nth(if has_target { 2 } else { 1 });
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The same packages as in the recipe: with others, shared dependencies would have other features and be built again.
    let packages = ["stack", CONSOLE, "patient-service", "billing-service", "analytics-service", AUTH_SERVICE];
    let build = Process::builder("cargo build", cargo, home::directory()?.join("build.log"))
        .args(["build", "--release", "--locked", "--quiet"])
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .envs(directory.map(|directory| ("CARGO_TARGET_DIR", directory)))
        .run(BUILD_TIMEOUT);
    Ok(step("Building the services", "", build).await?)
}

/// Starts what is not running yet and waits until everything is ready. `assume_yes`: also uses databases that `up` did not
/// create.
pub(crate) async fn up(settings: &Settings, assume_yes: bool) -> Result<()> {
    let started = Instant::now();
    let home = home::directory()?;
    check_ports(settings, &home)?;
    let secure = Secure::of_checkout()?;
    let renewed = match &secure {
        Some(secure) => secure.prepare(settings).await?,
        None => false,
    };
    let mut known = BTreeMap::new();
    for name in SERVICES.into_iter().chain(secure.as_ref().map(|_| AUTH_SERVICE)) {
        known.insert(name.to_owned(), service::settings(name)?);
    }
    let names = secure.as_ref().map(|secure| secure.setting_names(settings)).transpose()?.unwrap_or_default();
    let fixed: Vec<_> = names.iter().map(|name| (name.as_str(), "up --secure decides it")).collect();
    let mut selected = service_settings::select(&known, &fixed, |name| env::var(name).ok());
    selected.report();
    // The services export to the console, which forwards to the collector of the user.
    let collector = console_export::export_to_console(&mut selected.passed, &SERVICES, settings);
    let databases = databases::start(settings, &home, assume_yes, renewed).await?;
    let kafka = broker::start(settings, &home, renewed).await?;
    // From here on, other commands use this system.
    Settings::save(&[])?;
    service_settings::save(&selected.passed, collector.as_deref())?;
    let forwarding = collector.map(|url| console_export::settings_of_console(&selected.passed, &url));
    start(console(settings, &home, forwarding.unwrap_or_default())?).await?;
    if let Some(launch) = auth_service(settings, &home, &selected.passed)? {
        start(launch).await?;
    }
    for launch in launches(settings, &home, &databases, &kafka, &selected.passed)? {
        start(launch).await?;
    }
    let mut has_gateway = false;
    if let Some(secure) = &secure {
        has_gateway = gateway::is_installed();
        if has_gateway {
            gateway::start(secure, settings, &home).await?;
        } else {
            eprintln!("There is no gateway on port {}, because nginx is not installed.", settings.gateway_port);
        }
    }
    agent_process::start(settings).await?;
    summary::print(settings, false, secure.as_ref().map(|secure| (secure, has_gateway)));
    println!("\n  Ready after {:.1} s. Data and logs are in {}.", started.elapsed().as_secs_f64(), home.display());
    Ok(())
}

/// The console, with its settings for a collector to which it forwards telemetry.
fn console(settings: &Settings, home: &Path, forwarding: Vec<(&'static str, String)>) -> Result<Launch> {
    let secure = Secure::of_checkout()?;
    let scheme = if secure.is_some() { "https" } else { "http" };
    let mut environment = vec![
        ("PATIENT_SERVICE_HTTP", settings.patient_address()),
        ("BILLING_SERVICE_HTTP", settings.billing_address()),
        ("ANALYTICS_SERVICE_HTTP", settings.analytics_address()),
        ("PATIENT_SERVICE_LINK", format!("{scheme}://{}", settings.patient_address())),
        ("ANALYTICS_SERVICE_LINK", format!("{scheme}://{}", settings.analytics_address())),
        ("LOG_LEVEL", settings.log_level.clone()),
        ("LOG_FORMAT", "json".to_owned()),
        (agent_process::TOKEN, agent_process::token()?),
    ];
    environment.extend(secure.iter().flat_map(|secure| secure.console_settings(settings)));
    environment.extend(forwarding);
    environment.extend(env::var("CONSOLE_ASSETS").ok().map(|folder| ("CONSOLE_ASSETS", folder)));
    Ok(Launch {
        environment: environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..without_settings(CONSOLE, settings.console_port, home)?
    })
}

/// A launch without settings, to find the running process.
fn without_settings(name: &'static str, port: u16, home: &Path) -> Result<Launch> {
    // The console speaks plaintext to the browser on this machine, which does not know our authority.
    // Before the first start there is no authority.
    let secure = Secure::of_checkout()?.filter(|secure| name != CONSOLE && secure.authority().is_file());
    let access = secure.map(|secure| secure.access_without_user()).transpose()?;
    let label = name.to_owned();
    Ok(Launch { name, port, environment: Vec::new(), directory: home.to_owned(), label, access })
}

/// What runs besides the services, in the order of their start.
fn running_others(settings: &Settings, home: &Path) -> Result<[(&'static str, Option<Service>); 2]> {
    let auth_service = without_settings(AUTH_SERVICE, settings.auth_port, home)?.running();
    Ok([(CONSOLE, without_settings(CONSOLE, settings.console_port, home)?.running()), (AUTH_SERVICE, auth_service)])
}

/// The services of this system, in the order in which they are started.
fn launches(
    settings: &Settings,
    home: &Path,
    databases: &Databases,
    kafka: &str,
    passed: &service_settings::ByService,
) -> Result<[Launch; 3]> {
    let secure = Secure::of_checkout()?;
    let launch =
        |name, port, own| -> Result<Launch> { with_settings(name, port, own, settings, home, secure.as_ref(), passed) };
    let billing = match secure {
        // Its whole address is among the settings of the secure system.
        Some(_) => Vec::new(),
        None => vec![
            ("BILLING_SERVICE_ADDRESS", "127.0.0.1".to_owned()),
            ("BILLING_SERVICE_GRPC_PORT", settings.billing_grpc_port.to_string()),
        ],
    };
    let state = vec![
        ("KAFKA_BOOTSTRAP_SERVERS", kafka.to_owned()),
        ("STATE_FILE", analytics_state(home).display().to_string()),
    ];
    let registry = vec![
        ("DATABASE_URL", databases.patients.clone()),
        ("KAFKA_BOOTSTRAP_SERVERS", kafka.to_owned()),
        ("KAFKA_TOPIC_CLEANUP_POLICY", broker::cleanup_policy(home).to_owned()),
    ];
    let accounts =
        vec![("DATABASE_URL", databases.billing.clone()), ("GRPC_SERVER_PORT", settings.billing_grpc_port.to_string())];
    Ok([
        launch("billing-service", settings.billing_port, accounts)?,
        launch("analytics-service", settings.analytics_port, state)?,
        launch("patient-service", settings.patient_port, [registry, billing].concat())?,
    ])
}

/// A service with its own settings, those of the secure system, and those that `up` passes on.
fn with_settings(
    name: &'static str,
    port: u16,
    own: Vec<(&str, String)>,
    settings: &Settings,
    home: &Path,
    secure: Option<&Secure>,
    passed: &service_settings::ByService,
) -> Result<Launch> {
    let secure = secure.map(|secure| secure.settings_of(name, settings)).transpose()?.unwrap_or_default();
    let common = [("LOG_LEVEL", settings.log_level.clone()), ("LOG_FORMAT", "json".to_owned())];
    let ours = common.into_iter().chain(own).map(|(name, value)| (name.to_owned(), value));
    let passed = passed.get(name).cloned().unwrap_or_default();
    // Of settings that come twice, the last counts.
    let environment: BTreeMap<_, _> = ours.chain(secure).chain(passed).collect();
    Ok(Launch { environment: environment.into_iter().collect(), ..without_settings(name, port, home)? })
}

/// auth-service, which the secure system has.
fn auth_service(settings: &Settings, home: &Path, passed: &service_settings::ByService) -> Result<Option<Launch>> {
    let Some(secure) = Secure::of_checkout()? else { return Ok(None) };
    let launch = with_settings(AUTH_SERVICE, settings.auth_port, Vec::new(), settings, home, Some(&secure), passed)?;
    Ok(Some(launch))
}

/// The file of analytics' state.
pub(crate) fn analytics_state(home: &Path) -> PathBuf {
    home.join("analytics.sqlite")
}

fn analytics(settings: &Settings, home: &Path) -> Result<Launch> {
    let no_databases = Databases { patients: String::new(), billing: String::new() };
    let [_, analytics, _] =
        launches(settings, home, &no_databases, &settings.kafka_address(), &service_settings::saved()?)?;
    Ok(analytics)
}

/// Stops analytics-service if it runs.
pub(crate) async fn stop_analytics(settings: &Settings, home: &Path) -> Result<()> {
    if let Some(mut service) = analytics(settings, home)?.running() {
        step("Stopping analytics-service", "", async { Ok::<_, anyhow::Error>(service.stop().await) }).await?;
    }
    Ok(())
}

/// Starts analytics-service.
pub(crate) async fn start_analytics(settings: &Settings, home: &Path) -> Result<()> {
    start(analytics(settings, home)?).await
}

/// # Errors
/// If another process listens on one of our ports.
fn check_ports(settings: &Settings, home: &Path) -> Result<()> {
    let [billing, analytics, patients] = services(settings, home)?.map(|service| service.is_some());
    let [console, auth_service] = running_others(settings, home)?.map(|(_, service)| service.is_some());
    let mut ports = vec![
        (settings.patient_port, "PATIENT_PORT", patients),
        (settings.billing_port, "BILLING_PORT", billing),
        (settings.billing_grpc_port, "BILLING_GRPC_PORT", billing),
        (settings.analytics_port, "ANALYTICS_PORT", analytics),
        (settings.console_port, "CONSOLE_PORT", console),
    ];
    if settings.kafka.is_none() {
        ports.push((settings.kafka_port, "KAFKA_PORT", broker::running(settings, home).is_some()));
    }
    if Mode::of_checkout()? == Mode::Secure {
        ports.extend([
            (settings.auth_port, "AUTH_PORT", auth_service),
            (settings.gateway_port, "GATEWAY_PORT", gateway::running(home).is_some()),
            (settings.patient_operations_port, "PATIENT_OPERATIONS_PORT", patients),
            (settings.billing_operations_port, "BILLING_OPERATIONS_PORT", billing),
            (settings.analytics_operations_port, "ANALYTICS_OPERATIONS_PORT", analytics),
        ]);
    }
    ports::check_free(ports.into_iter().map(|(port, variable, ours)| RequiredPort { port, variable, ours }))
}

/// Runs a subcommand of patient-service.
pub(crate) async fn run_patient_service(settings: &Settings, arguments: &[&str]) -> Result<Output> {
    let home = home::directory()?;
    let databases = databases::of_running(settings, &home)?;
    let [_, _, patient_service] =
        launches(settings, &home, &databases, &settings.kafka_address(), &service_settings::saved()?)?;
    let mut command = smol::process::Command::new(binaries()?.join(patient_service.name));
    command.args(arguments).env_clear().envs(patient_service.environment).kill_on_drop(true);
    Ok(runtime::timeout(SUBCOMMAND_TIMEOUT, command.output()).await??)
}

/// Stops everything; data stay.
pub(crate) async fn down(settings: &Settings) -> Result<()> {
    let home = home::directory()?;
    let mut stopped = 0;
    agent_process::stop(&home).await;
    if gateway::running(&home).is_some() {
        let stop = async { Ok::<_, anyhow::Error>(gateway::stop(&home).await) };
        step("Stopping the gateway", "", stop).await?;
        stopped += 1;
    }
    let others = running_others(settings, &home)?.map(|(_, service)| service);
    for mut service in services(settings, &home)?.into_iter().rev().chain(others.into_iter().rev()).flatten() {
        let name = service.launch().name;
        let stop = async {
            let ended = service.stop().await;
            Ok::<_, anyhow::Error>(ended)
        };
        step(&format!("Stopping {name}"), "", stop).await?;
        stopped += 1;
    }
    if let Some(mut broker) = broker::running(settings, &home) {
        let stop = async {
            broker.stop().await;
            Ok::<_, anyhow::Error>(())
        };
        step(&format!("Stopping {}", broker::name(&home)), "", stop).await?;
        stopped += 1;
    }
    if let Some(mut cluster) = databases::running(&home) {
        let stop = async {
            cluster.stop().await;
            Ok::<_, anyhow::Error>(())
        };
        step("Stopping PostgreSQL", "", stop).await?;
        stopped += 1;
    }
    if stopped == 0 {
        println!("Nothing is running.");
    }
    Ok(())
}

/// The running services, in the order of their start.
fn services(settings: &Settings, home: &Path) -> Result<[Option<Service>; 3]> {
    let ports = [settings.billing_port, settings.analytics_port, settings.patient_port];
    let mut running = [None, None, None];
    for (number, (name, port)) in SERVICES.into_iter().zip(ports).enumerate() {
        running[number] = without_settings(name, port, home)?.running();
    }
    Ok(running)
}

/// Whether one of the services runs.
pub(crate) fn is_up(settings: &Settings) -> Result<bool> {
    Ok(services(settings, &home::directory()?)?.iter().any(Option::is_some))
}

/// Kills a service by SIGKILL.
pub(crate) async fn kill(settings: &Settings, name: &str) -> Result<()> {
    let home = home::directory()?;
    let others = running_others(settings, &home)?.map(|(_, service)| service);
    let running = services(settings, &home)?.into_iter().chain(others);
    let Some(mut service) = running.flatten().find(|service| service.launch().name == name) else {
        return Err(anyhow!("No service {name:?} is running."));
    };
    service.process().kill().await;
    Ok(())
}

/// Starts a killed service again, with the settings of the last `up`.
pub(crate) async fn start_service(settings: &Settings, name: &str) -> Result<()> {
    let home = home::directory()?;
    let databases = databases::of_running(settings, &home)?;
    let launches = launches(settings, &home, &databases, &settings.kafka_address(), &service_settings::saved()?)?;
    let launch = launches.into_iter().find(|launch| launch.name == name);
    start(launch.ok_or_else(|| anyhow!("There is no service {name:?}."))?).await
}

/// Sends a signal to a component: a service, the broker or PostgreSQL.
pub(crate) fn signal(settings: &Settings, component: &str, signal: Signal) -> Result<()> {
    let home = home::directory()?;
    let gone = || anyhow!("{component} is not running.");
    match component {
        "kafka" if settings.kafka.is_none() => {
            broker::running(settings, &home).ok_or_else(gone)?.process().signal_all(signal);
        }
        "postgres" if settings.database_url.is_none() => {
            databases::running(&home).ok_or_else(gone)?.process().signal_all(signal);
        }
        _ => {
            let mut running = services(settings, &home)?.into_iter().flatten();
            let service = running.find(|service| service.launch().name == component);
            service.ok_or_else(gone)?.process().signal(signal);
        }
    }
    Ok(())
}

/// The logs of the components.
pub(crate) fn logs() -> Result<Vec<Box<dyn Log>>> {
    let home = home::directory()?;
    let log = |(component, file): (&'static str, &str)| -> Box<dyn Log> {
        Box::new(FileLog::new(component, home.join(file)))
    };
    Ok(LOGS.map(log).into())
}

/// What runs.
pub(crate) async fn ps(settings: &Settings) -> Result<Vec<Component>> {
    let home = home::directory()?;
    let component = |name: &str, pid: Option<i32>, state: &str, address: String| Component {
        name: name.to_owned(),
        process: pid.map_or("-".to_owned(), |pid| pid.to_string()),
        state: state.to_owned(),
        memory: pid.map_or("-".to_owned(), memory),
        address,
    };
    let stopped = |name: &str| component(name, None, "stopped", String::new());
    let mut components = Vec::new();
    components.push(match databases::running(&home) {
        _ if settings.database_url.is_some() => component("PostgreSQL", None, "given", "DATABASE_URL".to_owned()),
        Some(mut cluster) => {
            // The downloaded build of PostgreSQL has no psql.
            let address = if is_on_the_path("psql") {
                format!("psql -U postgres -h {} patients", quoted(cluster.socket_directory()))
            } else {
                cluster.url("patients")
            };
            component("PostgreSQL", Some(cluster.process().pid()), "running", address)
        }
        None => stopped("PostgreSQL"),
    });
    components.push(match broker::running(settings, &home) {
        _ if settings.kafka.is_some() => component("broker", None, "given", settings.kafka_address()),
        Some(mut broker) => component(&broker::name(&home), Some(broker.process().pid()), "running", broker.address()),
        None => stopped("broker"),
    });
    let secure = Mode::of_checkout()? == Mode::Secure;
    let others = running_others(settings, &home)?.into_iter().filter(|(name, _)| secure || *name != AUTH_SERVICE);
    for (name, service) in SERVICES.into_iter().zip(services(settings, &home)?).chain(others) {
        components.push(match service {
            Some(mut service) => {
                let state = if service.is_ready().await { "ready" } else { "unready" };
                component(name, Some(service.process().pid()), state, service.client().base().to_owned())
            }
            None => stopped(name),
        });
    }
    if let Some(process) = gateway::running(&home) {
        let address = format!("https://{}", settings.gateway_address());
        components.push(component("gateway", Some(process.pid()), "running", address));
    }
    Ok(components)
}

fn is_on_the_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// The resident memory of a process, without its children.
fn memory(pid: i32) -> String {
    let bytes = testbed::resident_memory(pid);
    bytes.map_or("-".to_owned(), |bytes| format!("{:.1} MB", bytes as f64 / 1024.0 / 1024.0))
}

/// Stops everything and deletes its data, and nothing else that may be in their directory.
pub(crate) async fn delete(settings: &Settings) -> Result<()> {
    down(settings).await?;
    let home = home::directory()?;
    Cluster::remove_socket_directory(&databases::directory(&home));
    let left = home::delete(&home, Mode::of_checkout()?)?;
    if !left.is_empty() {
        println!("These are not of this system, and stay in {}: {}", home.display(), left.join(", "));
    }
    Ok(())
}
