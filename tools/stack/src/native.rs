//! The system on this machine without containers: PostgreSQL, a broker and our three services as processes of ours, which
//! go on when this program ends. A later run finds them by their pid files.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant, UNIX_EPOCH},
};

use testbed::{
    Process, Signal,
    broker::{Broker, Kind, Size},
    postgres::{Cluster, Durability},
    service::{self, Launch, Service, binaries},
};

use crate::{
    Failure, Outcome, agent_process,
    databases::Databases,
    given_databases, home,
    logs::{FileLog, Log},
    observation, parts,
    port_owner::{self, Wanted},
    private_file, service_settings,
    settings::Settings,
    show::{Part, step},
    summary,
};

/// A log above this size is begun anew by the next start; the old one is kept beside it.
const LOG_BYTES: u64 = 10 * 1024 * 1024;
/// Time for a command of patient-service, which waits for the outcome of what it resubmits.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Time for everything to be compiled.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);
/// What shows the others at work. It is the first to be there and the last to go, so that it sees all of their spans.
const CONSOLE: &str = "console";
/// The services, in the order in which they are started.
pub(crate) const SERVICES: [&str; 3] = ["billing-service", "analytics-service", "patient-service"];
/// The logs of the parts, in the folder of the data.
const LOGS: [(&str, &str); 6] = [
    ("patient-service", "patient-service.log"),
    ("billing-service", "billing-service.log"),
    ("analytics-service", "analytics-service.log"),
    (CONSOLE, "console.log"),
    ("broker", "broker/broker.log"),
    ("postgres", "postgres/postgres.log"),
];

/// Builds the services, which the recipe has done unless they were going to run in containers. Beside a program that was
/// not built for release, there are binaries of a test.
pub(crate) async fn build() -> Outcome {
    if !binaries()?.ends_with("release") || env::var_os("SERVICE_BINARIES").is_some() {
        return Ok(());
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The same packages together as in the recipe: others would have other features of what they share, and build anew.
    let packages = ["stack", CONSOLE, "patient-service", "billing-service", "analytics-service"];
    let build = Process::prepare("cargo build", cargo, home::directory()?.join("build.log"))
        .args(["build", "--release", "--locked", "--quiet"])
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .run(BUILD_LIMIT);
    Ok(step("Building the services", "", build).await?)
}

/// Starts what is not running yet and waits until everything is ready. `agreed`: also in databases that `up` has not made.
pub(crate) async fn up(settings: &Settings, agreed: bool) -> Outcome {
    let started = Instant::now();
    let home = home::directory()?;
    check_ports(settings, &home)?;
    let mut known = BTreeMap::new();
    for name in SERVICES {
        known.insert(name.to_owned(), service::settings(name)?);
    }
    let mut chosen = service_settings::choose(&known, &[], |name| env::var(name).ok());
    chosen.tell();
    // What the services export goes to the console, which passes it on to the user's collector.
    let collector = observation::through_the_console(&mut chosen.passed, &SERVICES, settings);
    let databases = databases(settings, &home, agreed).await?;
    let kafka = broker(settings, &home).await?;
    // From here on, other commands mean this system.
    Settings::keep()?;
    service_settings::keep(&chosen.passed)?;
    start(console(settings, &home, collector)?).await?;
    for launch in launches(settings, &home, &databases, &kafka, &chosen.passed) {
        start(launch).await?;
    }
    agent_process::start(settings).await?;
    summary::print(settings, false);
    println!("\n  Ready after {:.1} s. Data and logs are in {}.", started.elapsed().as_secs_f64(), home.display());
    Ok(())
}

/// The console of this system, which passes what the services export on to a collector if there is one.
fn console(settings: &Settings, home: &Path, collector: Option<String>) -> Outcome<Launch> {
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
        ..unset(CONSOLE, settings.console_port, home)
    })
}

/// How a program would be started without settings: enough to find the one that runs.
fn unset(name: &'static str, port: u16, home: &Path) -> Launch {
    Launch { name, port, environment: Vec::new(), directory: home.to_owned(), label: name.to_owned() }
}

/// The console, if it runs.
fn running_console(settings: &Settings, home: &Path) -> Option<Service> {
    unset(CONSOLE, settings.console_port, home).running()
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

fn analytics(settings: &Settings, home: &Path) -> Outcome<Launch> {
    let nowhere = Databases { patients: String::new(), billing: String::new() };
    let [_, analytics, _] = launches(settings, home, &nowhere, &settings.kafka_address(), &service_settings::kept()?);
    Ok(analytics)
}

/// Stops analytics-service alone, if it runs.
pub(crate) async fn stop_analytics(settings: &Settings, home: &Path) -> Outcome {
    if let Some(mut service) = analytics(settings, home)?.running() {
        step("Stopping analytics-service", "", async { Ok::<_, Failure>(service.stop().await) }).await?;
    }
    Ok(())
}

/// Starts it again.
pub(crate) async fn start_analytics(settings: &Settings, home: &Path) -> Outcome {
    start(analytics(settings, home)?).await
}

/// Starts a service. One that runs already is kept if nothing about it has changed, and else stopped, with the reason.
async fn start(launch: Launch) -> Outcome {
    let name = launch.name;
    let now = StartedAs::of(&launch)?;
    let file = launch.directory.join(format!("{}.started-as", launch.label));
    if let Some(mut running) = launch.clone().running() {
        let why = match StartedAs::read(&file) {
            Some(before) if before != now => now.changed(&before),
            Some(_) if running.is_ready().await => return Ok(()),
            Some(_) => "it is not ready".to_owned(),
            None => "it is not known how it was started".to_owned(),
        };
        eprintln!("{name} is started again: {why}");
        step(&format!("Stopping {name}"), "", async { Ok::<_, Failure>(running.stop().await) }).await?;
    }
    let start = async {
        rotate(&launch.log())?;
        let mut service = launch.start()?;
        now.write(&file)?;
        Ok::<_, Failure>(service.until_ready().await?)
    };
    step(&format!("Starting {name}"), "", start).await
}

/// How a service was started: with which binary, and which settings. Values are kept as digests, because some are secret.
#[derive(Clone, Debug, PartialEq, Eq)]
struct StartedAs(BTreeMap<String, String>);

impl StartedAs {
    fn of(launch: &Launch) -> Outcome<Self> {
        let binary = fs::metadata(binaries()?.join(launch.name))?;
        let modified = binary.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
        let ours = [("binary", format!("{} {modified}", binary.len())), ("port", launch.port.to_string())]
            .map(|(name, value)| (format!("its {name}"), value));
        let digest = |value: &str| {
            let mut hasher = DefaultHasher::new();
            value.hash(&mut hasher);
            format!("{:016x}", hasher.finish())
        };
        let settings = launch.environment.iter().map(|(name, value)| (name.clone(), digest(value)));
        Ok(Self(ours.into_iter().chain(settings).collect()))
    }

    fn read(file: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(file).ok()?).ok().map(Self)
    }

    fn write(&self, file: &Path) -> Outcome {
        private_file::write(file, &serde_json::to_string_pretty(&self.0)?)
    }

    /// What is not as it was.
    fn changed(&self, before: &Self) -> String {
        let names = self.0.keys().chain(before.0.keys()).collect::<BTreeSet<_>>();
        let changed = names.into_iter().filter(|name| self.0.get(*name) != before.0.get(*name));
        let changed: Vec<_> = changed.map(String::as_str).collect();
        format!("{} changed", changed.join(", "))
    }
}

fn rotate(log: &Path) -> Outcome {
    if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES) {
        fs::rename(log, log.with_extension("log.1"))?;
    }
    Ok(())
}

/// Says which port is taken by whom, unless it is by us.
fn check_ports(settings: &Settings, home: &Path) -> Outcome {
    let ours = |name: &'static str, port| unset(name, port, home).running().is_some();
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
    port_owner::refuse_taken(ports.into_iter().map(|(port, variable, ours)| Wanted { port, variable, ours }))
}

async fn databases(settings: &Settings, home: &Path, agreed: bool) -> Outcome<Databases> {
    if let Some(url) = &settings.database_url {
        return given_databases::find_or_make(url.expose(), home, agreed).await;
    }
    parts::postgres().await?;
    let directory = home.join("postgres");
    let start = async {
        let cluster = match Cluster::running(&directory, Durability::Disk) {
            Some(mut running) => {
                running.wake().await?;
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
        Ok::<_, Failure>(cluster)
    };
    let cluster = step("Starting PostgreSQL", "", start).await?;
    Ok(Databases { patients: cluster.url("patients"), billing: cluster.url("billing") })
}

/// The URL of patient-service's database.
fn patients_database(settings: &Settings) -> Outcome<String> {
    if let Some(url) = &settings.database_url {
        return Ok(given_databases::url_of(url.expose(), "patients"));
    }
    let cluster = Cluster::running(&home::directory()?.join("postgres"), Durability::Disk);
    Ok(cluster.ok_or_else(|| Failure("PostgreSQL is not running: just up".to_owned()))?.url("patients"))
}

/// Runs a command of patient-service.
pub(crate) async fn run_patient_service(settings: &Settings, words: &[&str]) -> Outcome<Output> {
    let databases = Databases { patients: patients_database(settings)?, billing: String::new() };
    let [_, _, patient_service] =
        launches(settings, &home::directory()?, &databases, &settings.kafka_address(), &service_settings::kept()?);
    let mut command = smol::process::Command::new(binaries()?.join(patient_service.name));
    command.args(words).env_clear().envs(patient_service.environment).kill_on_drop(true);
    Ok(runtime::timeout(COMMAND_LIMIT, command.output()).await??)
}

/// In the broker's folder: the port that it listens on.
const PORT_FILE: &str = "port";

fn broker_directory(home: &Path) -> PathBuf {
    home.join("broker")
}

/// Which broker's data the folder holds.
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

async fn broker(settings: &Settings, home: &Path) -> Outcome<String> {
    if settings.kafka.is_some() {
        return Ok(settings.kafka_address());
    }
    let before = kind_of_data(home);
    let wanted = settings.broker.map(|broker| broker.0);
    if let (Some(before), Some(wanted)) = (before, wanted.filter(|wanted| before != Some(*wanted))) {
        return Err(Failure(format!(
            "The events of this system are kept by {before}, and {wanted} cannot read them. Leave BROKER out, or begin \
             anew: just reset"
        )));
    }
    let kind = parts::broker(wanted.or(before)).await?;
    let directory = broker_directory(home);
    let start = async {
        if let Some(mut running) = running_broker(settings, home) {
            if fs::read_to_string(directory.join(PORT_FILE)).is_ok_and(|port| port.trim() == running.port().to_string())
            {
                return Ok(running.wake().await?);
            }
            // KAFKA_PORT is another one now.
            running.stop().await;
        }
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(PORT_FILE), format!("{}\n", settings.kafka_port))?;
        fs::write(kind_file(home), if kind == Kind::Kafka { "kafka\n" } else { "nisshi\n" })?;
        rotate(&directory.join("broker.log"))?;
        Broker::start(kind, &directory, settings.kafka_port, Size::Full, "").await?;
        Ok::<_, Failure>(())
    };
    step(&format!("Starting {kind}"), "", start).await?;
    Ok(settings.kafka_address())
}

/// Stops everything; data stay.
pub(crate) async fn down(settings: &Settings) -> Outcome {
    let home = home::directory()?;
    let mut stopped = 0;
    agent_process::stop(&home).await;
    let console = running_console(settings, &home);
    for mut service in services(settings, &home).into_iter().rev().chain([console]).flatten() {
        let name = service.launch().name;
        let stop = async {
            let ended = service.stop().await;
            Ok::<_, Failure>(ended)
        };
        step(&format!("Stopping {name}"), "", stop).await?;
        stopped += 1;
    }
    if let Some(mut broker) = running_broker(settings, &home) {
        let stop = async {
            broker.stop().await;
            Ok::<_, Failure>(())
        };
        step(&format!("Stopping {}", broker_name(&home)), "", stop).await?;
        stopped += 1;
    }
    if let Some(mut cluster) = Cluster::running(&home.join("postgres"), Durability::Disk) {
        let stop = async {
            cluster.stop().await;
            Ok::<_, Failure>(())
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

/// The services of this system that run, in the order in which they are started.
fn services(settings: &Settings, home: &Path) -> [Option<Service>; 3] {
    let nowhere = Databases { patients: String::new(), billing: String::new() };
    launches(settings, home, &nowhere, "", &BTreeMap::new()).map(Launch::running)
}

/// Whether one of the services runs.
pub(crate) fn is_up(settings: &Settings) -> Outcome<bool> {
    Ok(services(settings, &home::directory()?).iter().any(Option::is_some))
}

/// Kills a service, as a crash does.
pub(crate) async fn kill(settings: &Settings, name: &str) -> Outcome {
    let home = home::directory()?;
    let running = services(settings, &home).into_iter().chain([running_console(settings, &home)]);
    let Some(mut service) = running.flatten().find(|service| service.launch().name == name) else {
        return Err(Failure(format!("No service {name:?} is running.")));
    };
    service.process().kill().await;
    Ok(())
}

/// Starts a service again that was killed, as `up` has started it.
pub(crate) async fn start_service(settings: &Settings, name: &str) -> Outcome {
    let home = home::directory()?;
    let databases = match &settings.database_url {
        Some(url) => {
            let of = |name| given_databases::url_of(url.expose(), name);
            Databases { patients: of("patients"), billing: of("billing") }
        }
        None => {
            let cluster = Cluster::running(&home.join("postgres"), Durability::Disk);
            let cluster = cluster.ok_or_else(|| Failure("PostgreSQL is not running.".to_owned()))?;
            Databases { patients: cluster.url("patients"), billing: cluster.url("billing") }
        }
    };
    let launches = launches(settings, &home, &databases, &settings.kafka_address(), &service_settings::kept()?);
    let launch = launches.into_iter().find(|launch| launch.name == name);
    start(launch.ok_or_else(|| Failure(format!("There is no service {name:?}.")))?).await
}

/// Sends a signal to a part: a service, the broker or PostgreSQL.
pub(crate) fn signal(settings: &Settings, part: &str, signal: Signal) -> Outcome {
    let home = home::directory()?;
    let gone = || Failure(format!("{part} is not running."));
    match part {
        "kafka" if settings.kafka.is_none() => {
            running_broker(settings, &home).ok_or_else(gone)?.process().signal_all(signal);
        }
        "postgres" if settings.database_url.is_none() => {
            let cluster = Cluster::running(&home.join("postgres"), Durability::Disk);
            cluster.ok_or_else(gone)?.process().signal_all(signal);
        }
        _ => {
            let mut running = services(settings, &home).into_iter().flatten();
            let service = running.find(|service| service.launch().name == part);
            service.ok_or_else(gone)?.process().signal(signal);
        }
    }
    Ok(())
}

/// The logs of the parts.
pub(crate) fn logs() -> Outcome<Vec<Box<dyn Log>>> {
    let home = home::directory()?;
    let log = |(part, file): (&'static str, &str)| -> Box<dyn Log> { Box::new(FileLog::new(part, home.join(file))) };
    Ok(LOGS.map(log).into())
}

/// What runs.
pub(crate) async fn ps(settings: &Settings) -> Outcome<Vec<Part>> {
    let home = home::directory()?;
    let part = |name: &str, pid: Option<i32>, state: &str, place: String| Part {
        name: name.to_owned(),
        process: pid.map_or("-".to_owned(), |pid| pid.to_string()),
        state: state.to_owned(),
        memory: pid.map_or("-".to_owned(), memory),
        place,
    };
    let stopped = |name: &str| part(name, None, "stopped", String::new());
    let mut parts = Vec::new();
    parts.push(match Cluster::running(&home.join("postgres"), Durability::Disk) {
        _ if settings.database_url.is_some() => part("PostgreSQL", None, "given", "DATABASE_URL".to_owned()),
        Some(mut cluster) => {
            // The build that is fetched has no psql.
            let place = if is_on_the_path("psql") {
                format!("psql -U postgres -h {} patients", for_a_shell(cluster.socket_directory()))
            } else {
                cluster.url("patients")
            };
            part("PostgreSQL", Some(cluster.process().pid()), "running", place)
        }
        None => stopped("PostgreSQL"),
    });
    parts.push(match running_broker(settings, &home) {
        _ if settings.kafka.is_some() => part("broker", None, "given", settings.kafka_address()),
        Some(mut broker) => part(&broker_name(&home), Some(broker.process().pid()), "running", broker.address()),
        None => stopped("broker"),
    });
    let console = [(CONSOLE, running_console(settings, &home))];
    for (name, service) in SERVICES.into_iter().zip(services(settings, &home)).chain(console) {
        parts.push(match service {
            Some(mut service) => {
                let state = if service.is_ready().await { "ready" } else { "unready" };
                part(name, Some(service.process().pid()), state, format!("http://{}", service.address()))
            }
            None => stopped(name),
        });
    }
    Ok(parts)
}

fn is_on_the_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// A path as a shell takes it.
fn for_a_shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The resident memory of a process, without its children.
fn memory(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.map_or("-".to_owned(), |kib| format!("{:.1} MB", kib / 1024.0))
}

/// Stops everything and deletes its data.
pub(crate) async fn delete(settings: &Settings) -> Outcome {
    down(settings).await?;
    let home = home::directory()?;
    Cluster::forget(&home.join("postgres"));
    Ok(fs::remove_dir_all(home)?)
}
