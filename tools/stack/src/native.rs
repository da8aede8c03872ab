//! The system without containers: PostgreSQL, a broker and our three services as processes that outlive this program. A later
//! run finds them by their pid files.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use testbed::{
    Process, Signal,
    broker::{Broker, Kind, Size},
    postgres::{Cluster, Durability},
    service::{self, Launch, Service, binaries},
};

use crate::{
    agent_process, console_export,
    external_databases::{self, Databases},
    home, install,
    logs::{FileLog, Log},
    ports::{self, RequiredPort},
    service_settings,
    settings::Settings,
    summary,
    terminal::{Component, step},
};

mod launch;

use launch::{rotate, start};

/// Time for a subcommand of patient-service, which waits for the outcome of what it resubmits.
const SUBCOMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a build of the services.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3600);
/// It is started first and stopped last, so that it receives all spans.
const CONSOLE: &str = "console";
/// The services, in the order of their start.
pub(crate) const SERVICES: [&str; 3] = ["billing-service", "analytics-service", "patient-service"];
/// The logs of the components, in the data directory.
const LOGS: [(&str, &str); 6] = [
    ("patient-service", "patient-service.log"),
    ("billing-service", "billing-service.log"),
    ("analytics-service", "analytics-service.log"),
    (CONSOLE, "console.log"),
    ("broker", "broker/broker.log"),
    ("postgres", "postgres/postgres.log"),
];

/// Builds the services. The recipe has done so unless it expected them to run in containers. In a debug build of this program,
/// the binaries of the tests are used.
pub(crate) async fn build() -> Result<()> {
    if !binaries()?.ends_with("release") || env::var_os("SERVICE_BINARIES").is_some() {
        return Ok(());
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The same packages as in the recipe: with others, shared dependencies would have other features and be built again.
    let packages = ["stack", CONSOLE, "patient-service", "billing-service", "analytics-service"];
    let build = Process::builder("cargo build", cargo, home::directory()?.join("build.log"))
        .args(["build", "--release", "--locked", "--quiet"])
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .run(BUILD_TIMEOUT);
    Ok(step("Building the services", "", build).await?)
}

/// Starts what is not running yet and waits until everything is ready. `assume_yes`: also uses databases that `up` did not
/// create.
pub(crate) async fn up(settings: &Settings, assume_yes: bool) -> Result<()> {
    let started = Instant::now();
    let home = home::directory()?;
    check_ports(settings, &home)?;
    let mut known = BTreeMap::new();
    for name in SERVICES {
        known.insert(name.to_owned(), service::settings(name)?);
    }
    let mut selected = service_settings::select(&known, &[], |name| env::var(name).ok());
    selected.report();
    // The services export to the console, which forwards to the collector of the user.
    let collector = console_export::export_to_console(&mut selected.passed, &SERVICES, settings);
    let databases = databases(settings, &home, assume_yes).await?;
    let kafka = broker(settings, &home).await?;
    // From here on, other commands use this system.
    Settings::save()?;
    service_settings::save(&selected.passed, collector.as_deref())?;
    start(console(settings, &home, collector)?).await?;
    for launch in launches(settings, &home, &databases, &kafka, &selected.passed) {
        start(launch).await?;
    }
    agent_process::start(settings).await?;
    summary::print(settings, false);
    println!("\n  Ready after {:.1} s. Data and logs are in {}.", started.elapsed().as_secs_f64(), home.display());
    Ok(())
}

/// The console, which forwards telemetry to a collector if there is one.
fn console(settings: &Settings, home: &Path, collector: Option<String>) -> Result<Launch> {
    let mut environment = vec![
        ("PATIENT_SERVICE_HTTP", settings.patient_address()),
        ("BILLING_SERVICE_HTTP", settings.billing_address()),
        ("ANALYTICS_SERVICE_HTTP", settings.analytics_address()),
        ("PATIENT_SERVICE_LINK", format!("http://{}", settings.patient_address())),
        ("ANALYTICS_SERVICE_LINK", format!("http://{}", settings.analytics_address())),
        ("LOG_LEVEL", settings.log_level.clone()),
        ("LOG_FORMAT", "json".to_owned()),
        (agent_process::TOKEN, agent_process::token()?),
    ];
    environment.extend(collector.map(|collector| ("CONSOLE_FORWARD_OTLP", collector)));
    environment.extend(env::var("CONSOLE_ASSETS").ok().map(|folder| ("CONSOLE_ASSETS", folder)));
    Ok(Launch {
        environment: environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..without_settings(CONSOLE, settings.console_port, home)
    })
}

/// A launch without settings, to find the running process.
fn without_settings(name: &'static str, port: u16, home: &Path) -> Launch {
    Launch { name, port, environment: Vec::new(), directory: home.to_owned(), label: name.to_owned() }
}

/// The console if it runs.
fn running_console(settings: &Settings, home: &Path) -> Option<Service> {
    without_settings(CONSOLE, settings.console_port, home).running()
}

/// The services of this system, in the order in which they are started.
fn launches(
    settings: &Settings,
    home: &Path,
    databases: &Databases,
    kafka: &str,
    passed: &service_settings::ByService,
) -> [Launch; 3] {
    let launch = |name: &'static str, port: u16, own: Vec<(&str, String)>| {
        let common = [("LOG_LEVEL", settings.log_level.clone()), ("LOG_FORMAT", "json".to_owned())];
        let ours = common.into_iter().chain(own).map(|(name, value)| (name.to_owned(), value));
        let passed = passed.get(name).cloned().unwrap_or_default();
        let environment = ours.chain(passed).collect();
        Launch { name, port, environment, directory: home.to_owned(), label: name.to_owned() }
    };
    let grpc_port = settings.billing_grpc_port.to_string();
    [
        launch(
            "billing-service",
            settings.billing_port,
            vec![("DATABASE_URL", databases.billing.clone()), ("GRPC_SERVER_PORT", grpc_port.clone())],
        ),
        launch(
            "analytics-service",
            settings.analytics_port,
            vec![
                ("KAFKA_BOOTSTRAP_SERVERS", kafka.to_owned()),
                ("STATE_FILE", analytics_state(home).display().to_string()),
            ],
        ),
        launch(
            "patient-service",
            settings.patient_port,
            vec![
                ("DATABASE_URL", databases.patients.clone()),
                ("KAFKA_BOOTSTRAP_SERVERS", kafka.to_owned()),
                ("BILLING_SERVICE_ADDRESS", "127.0.0.1".to_owned()),
                ("BILLING_SERVICE_GRPC_PORT", grpc_port),
            ],
        ),
    ]
}

/// The file of analytics' state.
pub(crate) fn analytics_state(home: &Path) -> PathBuf {
    home.join("analytics.sqlite")
}

fn analytics(settings: &Settings, home: &Path) -> Result<Launch> {
    let no_databases = Databases { patients: String::new(), billing: String::new() };
    let [_, analytics, _] =
        launches(settings, home, &no_databases, &settings.kafka_address(), &service_settings::saved()?);
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
    let ours = |name: &'static str, port| without_settings(name, port, home).running().is_some();
    let billing = ours("billing-service", settings.billing_port);
    let mut ports = vec![
        (settings.patient_port, "PATIENT_PORT", ours("patient-service", settings.patient_port)),
        (settings.billing_port, "BILLING_PORT", billing),
        (settings.billing_grpc_port, "BILLING_GRPC_PORT", billing),
        (settings.analytics_port, "ANALYTICS_PORT", ours("analytics-service", settings.analytics_port)),
        (settings.console_port, "CONSOLE_PORT", ours(CONSOLE, settings.console_port)),
    ];
    if settings.kafka.is_none() {
        ports.push((settings.kafka_port, "KAFKA_PORT", running_broker(settings, home).is_some()));
    }
    ports::check_free(ports.into_iter().map(|(port, variable, ours)| RequiredPort { port, variable, ours }))
}

async fn databases(settings: &Settings, home: &Path, assume_yes: bool) -> Result<Databases> {
    if let Some(url) = &settings.database_url {
        return external_databases::find_or_create(url.expose(), home, assume_yes).await;
    }
    install::postgres().await?;
    let directory = home.join("postgres");
    let start = async {
        let cluster = match Cluster::running(&directory, Durability::Disk) {
            Some(mut running) => {
                running.resume().await?;
                running
            }
            None => {
                rotate(&directory.join("postgres.log"))?;
                Cluster::start(&directory, Durability::Disk).await?
            }
        };
        for name in ["patients", "billing"] {
            cluster.create_database(name).await?;
        }
        Ok::<_, anyhow::Error>(cluster)
    };
    let cluster = step("Starting PostgreSQL", "", start).await?;
    Ok(Databases { patients: cluster.url("patients"), billing: cluster.url("billing") })
}

/// The URL of patient-service's database.
fn patients_database(settings: &Settings) -> Result<String> {
    if let Some(url) = &settings.database_url {
        return Ok(external_databases::url_of(url.expose(), "patients"));
    }
    let cluster = Cluster::running(&home::directory()?.join("postgres"), Durability::Disk);
    Ok(cluster.ok_or_else(|| anyhow!("PostgreSQL is not running: just up"))?.url("patients"))
}

/// Runs a subcommand of patient-service.
pub(crate) async fn run_patient_service(settings: &Settings, arguments: &[&str]) -> Result<Output> {
    let databases = Databases { patients: patients_database(settings)?, billing: String::new() };
    let [_, _, patient_service] =
        launches(settings, &home::directory()?, &databases, &settings.kafka_address(), &service_settings::saved()?);
    let mut command = smol::process::Command::new(binaries()?.join(patient_service.name));
    command.args(arguments).env_clear().envs(patient_service.environment).kill_on_drop(true);
    Ok(runtime::timeout(SUBCOMMAND_TIMEOUT, command.output()).await??)
}

/// In the broker's directory: its port.
const PORT_FILE: &str = "port";

fn broker_directory(home: &Path) -> PathBuf {
    home.join("broker")
}

/// In the broker's directory: the kind of broker whose data it contains.
fn kind_file(home: &Path) -> PathBuf {
    broker_directory(home).join("kind")
}

fn kind_of_data(home: &Path) -> Option<Kind> {
    match fs::read_to_string(kind_file(home)).ok()?.trim() {
        "kafka" => Some(Kind::Kafka),
        "nisshi" => Some(Kind::Nisshi),
        _ => None,
    }
}

fn running_broker(settings: &Settings, home: &Path) -> Option<Broker> {
    Broker::running(kind_of_data(home)?, &broker_directory(home), settings.kafka_port, Size::Full)
}

async fn broker(settings: &Settings, home: &Path) -> Result<String> {
    if settings.kafka.is_some() {
        return Ok(settings.kafka_address());
    }
    let before = kind_of_data(home);
    let requested = settings.broker.map(|broker| broker.0);
    if let (Some(before), Some(requested)) = (before, requested.filter(|requested| before != Some(*requested))) {
        return Err(anyhow!(
            "{before} has the events of this system, and {requested} cannot read them. Unset BROKER, or delete all data: \
             just reset"
        ));
    }
    let kind = install::broker(requested.or(before)).await?;
    let directory = broker_directory(home);
    let start = async {
        if let Some(mut running) = running_broker(settings, home) {
            if fs::read_to_string(directory.join(PORT_FILE)).is_ok_and(|port| port.trim() == running.port().to_string())
            {
                return Ok(running.resume().await?);
            }
            // KAFKA_PORT has changed.
            running.stop().await;
        }
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(PORT_FILE), format!("{}\n", settings.kafka_port))?;
        fs::write(kind_file(home), if kind == Kind::Kafka { "kafka\n" } else { "nisshi\n" })?;
        rotate(&directory.join("broker.log"))?;
        Broker::start(kind, &directory, settings.kafka_port, Size::Full, "").await?;
        Ok::<_, anyhow::Error>(())
    };
    step(&format!("Starting {kind}"), "", start).await?;
    Ok(settings.kafka_address())
}

/// Stops everything; data stay.
pub(crate) async fn down(settings: &Settings) -> Result<()> {
    let home = home::directory()?;
    let mut stopped = 0;
    agent_process::stop(&home).await;
    let console = running_console(settings, &home);
    for mut service in services(settings, &home).into_iter().rev().chain([console]).flatten() {
        let name = service.launch().name;
        let stop = async {
            let ended = service.stop().await;
            Ok::<_, anyhow::Error>(ended)
        };
        step(&format!("Stopping {name}"), "", stop).await?;
        stopped += 1;
    }
    if let Some(mut broker) = running_broker(settings, &home) {
        let stop = async {
            broker.stop().await;
            Ok::<_, anyhow::Error>(())
        };
        step(&format!("Stopping {}", broker_name(&home)), "", stop).await?;
        stopped += 1;
    }
    if let Some(mut cluster) = Cluster::running(&home.join("postgres"), Durability::Disk) {
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

fn broker_name(home: &Path) -> String {
    kind_of_data(home).map_or("the broker".to_owned(), |kind| kind.to_string())
}

/// The running services, in the order of their start.
fn services(settings: &Settings, home: &Path) -> [Option<Service>; 3] {
    let no_databases = Databases { patients: String::new(), billing: String::new() };
    launches(settings, home, &no_databases, "", &BTreeMap::new()).map(Launch::running)
}

/// Whether one of the services runs.
pub(crate) fn is_up(settings: &Settings) -> Result<bool> {
    Ok(services(settings, &home::directory()?).iter().any(Option::is_some))
}

/// Kills a service by SIGKILL.
pub(crate) async fn kill(settings: &Settings, name: &str) -> Result<()> {
    let home = home::directory()?;
    let running = services(settings, &home).into_iter().chain([running_console(settings, &home)]);
    let Some(mut service) = running.flatten().find(|service| service.launch().name == name) else {
        return Err(anyhow!("No service {name:?} is running."));
    };
    service.process().kill().await;
    Ok(())
}

/// Starts a killed service again, with the settings of the last `up`.
pub(crate) async fn start_service(settings: &Settings, name: &str) -> Result<()> {
    let home = home::directory()?;
    let databases = match &settings.database_url {
        Some(url) => {
            let of = |name| external_databases::url_of(url.expose(), name);
            Databases { patients: of("patients"), billing: of("billing") }
        }
        None => {
            let cluster = Cluster::running(&home.join("postgres"), Durability::Disk);
            let cluster = cluster.ok_or_else(|| anyhow!("PostgreSQL is not running."))?;
            Databases { patients: cluster.url("patients"), billing: cluster.url("billing") }
        }
    };
    let launches = launches(settings, &home, &databases, &settings.kafka_address(), &service_settings::saved()?);
    let launch = launches.into_iter().find(|launch| launch.name == name);
    start(launch.ok_or_else(|| anyhow!("There is no service {name:?}."))?).await
}

/// Sends a signal to a component: a service, the broker or PostgreSQL.
pub(crate) fn signal(settings: &Settings, component: &str, signal: Signal) -> Result<()> {
    let home = home::directory()?;
    let gone = || anyhow!("{component} is not running.");
    match component {
        "kafka" if settings.kafka.is_none() => {
            running_broker(settings, &home).ok_or_else(gone)?.process().signal_all(signal);
        }
        "postgres" if settings.database_url.is_none() => {
            let cluster = Cluster::running(&home.join("postgres"), Durability::Disk);
            cluster.ok_or_else(gone)?.process().signal_all(signal);
        }
        _ => {
            let mut running = services(settings, &home).into_iter().flatten();
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
    components.push(match Cluster::running(&home.join("postgres"), Durability::Disk) {
        _ if settings.database_url.is_some() => component("PostgreSQL", None, "given", "DATABASE_URL".to_owned()),
        Some(mut cluster) => {
            // The downloaded build of PostgreSQL has no psql.
            let address = if is_on_the_path("psql") {
                format!("psql -U postgres -h {} patients", shell_quoted(cluster.socket_directory()))
            } else {
                cluster.url("patients")
            };
            component("PostgreSQL", Some(cluster.process().pid()), "running", address)
        }
        None => stopped("PostgreSQL"),
    });
    components.push(match running_broker(settings, &home) {
        _ if settings.kafka.is_some() => component("broker", None, "given", settings.kafka_address()),
        Some(mut broker) => component(&broker_name(&home), Some(broker.process().pid()), "running", broker.address()),
        None => stopped("broker"),
    });
    let console = [(CONSOLE, running_console(settings, &home))];
    for (name, service) in SERVICES.into_iter().zip(services(settings, &home)).chain(console) {
        components.push(match service {
            Some(mut service) => {
                let state = if service.is_ready().await { "ready" } else { "unready" };
                component(name, Some(service.process().pid()), state, format!("http://{}", service.address()))
            }
            None => stopped(name),
        });
    }
    Ok(components)
}

fn is_on_the_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// A path quoted for a shell.
fn shell_quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The resident memory of a process, without its children.
fn memory(pid: i32) -> String {
    let bytes = testbed::resident_memory(pid);
    bytes.map_or("-".to_owned(), |bytes| format!("{:.1} MB", bytes as f64 / 1024.0 / 1024.0))
}

/// Stops everything and deletes its data.
pub(crate) async fn delete(settings: &Settings) -> Result<()> {
    down(settings).await?;
    let home = home::directory()?;
    Cluster::remove_socket_directory(&home.join("postgres"));
    Ok(fs::remove_dir_all(home)?)
}
