//! The system on this machine without containers: PostgreSQL, a broker and our three services as processes of ours, which
//! go on when this program ends. A later run finds them by their pid files.

use std::{
    env, fs,
    path::{Path, PathBuf},
    str::FromStr as _,
    time::{Duration, Instant, UNIX_EPOCH},
};

use sqlx::{ConnectOptions as _, Connection as _, postgres::PgConnectOptions};
use testbed::{
    Process,
    broker::{Broker, Kind, Size},
    postgres::{Cluster, Durability},
    service::{Launch, Service, binaries},
};

use crate::{
    Failure, Outcome, card, home,
    logs::{FileLog, Log},
    parts,
    port_owner::{self, Wanted},
    settings::Settings,
    show::{Part, step},
};

/// A log above this size is begun anew by the next start; the old one is kept beside it.
const LOG_BYTES: u64 = 10 * 1024 * 1024;
/// Time for a given database server to answer.
const DATABASE_LIMIT: Duration = Duration::from_secs(5);
/// Time for everything to be compiled.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);
/// The logs of the parts, in the folder of the data.
const LOGS: [(&str, &str); 5] = [
    ("patient-service", "patient-service.log"),
    ("billing-service", "billing-service.log"),
    ("analytics-service", "analytics-service.log"),
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
    let packages = ["stack", "patient-service", "billing-service", "analytics-service"];
    let build = Process::prepare("cargo build", cargo, home::directory()?.join("build.log"))
        .args(["build", "--release", "--locked", "--quiet"])
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .run(BUILD_LIMIT);
    Ok(step("Building the services", "", build).await?)
}

/// Starts what is not running yet and waits until everything is ready.
pub(crate) async fn up(settings: &Settings) -> Outcome {
    let started = Instant::now();
    let home = home::directory()?;
    check_ports(settings, &home)?;
    let databases = databases(settings, &home).await?;
    let kafka = broker(settings, &home).await?;
    for launch in launches(settings, &home, &databases, &kafka) {
        let name = launch.name;
        step(&format!("Starting {name}"), "", start(launch)).await?;
    }
    card::print(settings, false);
    println!("\n  Ready after {:.1} s. Data and logs are in {}.", started.elapsed().as_secs_f64(), home.display());
    Ok(())
}

/// The services of this system, in the order in which they are started.
fn launches(settings: &Settings, home: &Path, databases: &Databases, kafka: &str) -> [Launch; 3] {
    let launch = |name: &'static str, port: u16, own: Vec<(&str, String)>| {
        let common = [("LOG_LEVEL", settings.log_level.clone()), ("LOG_FORMAT", "json".to_owned())];
        let environment = common.into_iter().chain(own).map(|(name, value)| (name.to_owned(), value)).collect();
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

fn analytics(settings: &Settings, home: &Path) -> Launch {
    let nowhere = Databases { patients: String::new(), billing: String::new() };
    let [_, analytics, _] = launches(settings, home, &nowhere, &settings.kafka_address());
    analytics
}

/// Stops analytics-service alone, if it runs.
pub(crate) async fn stop_analytics(settings: &Settings, home: &Path) -> Outcome {
    if let Some(mut service) = analytics(settings, home).running() {
        step("Stopping analytics-service", "", async { Ok::<_, Failure>(service.stop().await) }).await?;
    }
    Ok(())
}

/// Starts it again.
pub(crate) async fn start_analytics(settings: &Settings, home: &Path) -> Outcome {
    step("Starting analytics-service", "", start(analytics(settings, home))).await
}

/// Starts a service; one that runs already is kept if nothing about it has changed.
async fn start(launch: Launch) -> Outcome {
    let print = fingerprint(&launch)?;
    let print_file = launch.directory.join(format!("{}.started-as", launch.label));
    if let Some(mut running) = launch.clone().running() {
        if fs::read_to_string(&print_file).is_ok_and(|before| before == print) && running.is_ready().await {
            return Ok(());
        }
        running.stop().await;
    }
    rotate(&launch.log())?;
    let mut service = launch.start()?;
    fs::write(print_file, print)?;
    Ok(service.until_ready().await?)
}

/// Tells a start from one with another binary or other settings.
fn fingerprint(launch: &Launch) -> Outcome<String> {
    let binary = fs::metadata(binaries()?.join(launch.name))?;
    let modified = binary.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
    Ok(format!("{} {modified} {} {:?}", binary.len(), launch.port, launch.environment))
}

fn rotate(log: &Path) -> Outcome {
    if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES) {
        fs::rename(log, log.with_extension("log.1"))?;
    }
    Ok(())
}

/// Says which port is taken by whom, unless it is by us.
fn check_ports(settings: &Settings, home: &Path) -> Outcome {
    let ours = |name: &'static str, port| {
        Launch { name, port, environment: Vec::new(), directory: home.to_owned(), label: name.to_owned() }
            .running()
            .is_some()
    };
    let billing = ours("billing-service", settings.billing_port);
    let mut ports = vec![
        (settings.patient_port, "PATIENT_PORT", ours("patient-service", settings.patient_port)),
        (settings.billing_port, "BILLING_PORT", billing),
        (settings.billing_grpc_port, "BILLING_GRPC_PORT", billing),
        (settings.analytics_port, "ANALYTICS_PORT", ours("analytics-service", settings.analytics_port)),
    ];
    if settings.kafka.is_none() {
        ports.push((settings.kafka_port, "KAFKA_PORT", running_broker(settings, home).is_some()));
    }
    port_owner::refuse_taken(ports.into_iter().map(|(port, variable, ours)| Wanted { port, variable, ours }))
}

struct Databases {
    patients: String,
    billing: String,
}

async fn databases(settings: &Settings, home: &Path) -> Outcome<Databases> {
    if let Some(url) = &settings.database_url {
        let databases = step("Looking for the given PostgreSQL", "", given_databases(url.expose())).await?;
        return Ok(databases);
    }
    parts::postgres().await?;
    let directory = home.join("postgres");
    let start = async {
        let running = Cluster::running(&directory, Durability::Disk);
        if running.is_none() {
            rotate(&directory.join("postgres.log"))?;
        }
        let cluster = match running {
            Some(cluster) => cluster,
            None => Cluster::start(&directory, Durability::Disk).await?,
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
pub(crate) fn patients_database(settings: &Settings) -> Outcome<String> {
    if let Some(url) = &settings.database_url {
        return Ok(with_database(url.expose(), "patients"));
    }
    let cluster = Cluster::running(&home::directory()?.join("postgres"), Durability::Disk);
    Ok(cluster.ok_or_else(|| Failure("PostgreSQL is not running: just up".to_owned()))?.url("patients"))
}

/// The first column, a text, of the rows that a statement gives.
pub(crate) async fn ask(url: &str, statement: &str) -> Outcome<Vec<String>> {
    let work = async {
        let mut connection = PgConnectOptions::from_str(url)?.connect().await?;
        let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>(rows)
    };
    Ok(runtime::within(DATABASE_LIMIT, work).await??)
}

/// A server's URL with the name of one of our databases.
fn with_database(url: &str, name: &str) -> String {
    let (before, query) = url.split_once('?').map_or((url, ""), |(before, query)| (before, query));
    let scheme_end = before.find("://").map_or(0, |at| at + 3);
    let authority_end = before[scheme_end..].find('/').map_or(before.len(), |at| scheme_end + at);
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    format!("{}/{name}{query}", &before[..authority_end])
}

/// The two databases on a given server, which are made if they are not there.
async fn given_databases(url: &str) -> Outcome<Databases> {
    let wrong = |_| Failure("DATABASE_URL is not a PostgreSQL URL (its value is not shown).".to_owned());
    let options = PgConnectOptions::from_str(url).map_err(wrong)?;
    let mut connection = runtime::within(DATABASE_LIMIT, options.connect()).await??;
    for name in ["patients", "billing"] {
        let exists = sqlx::query("SELECT 1 FROM pg_database WHERE datname = $1").bind(name);
        if exists.fetch_optional(&mut connection).await?.is_none() {
            let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
            sqlx::query(create).execute(&mut connection).await?;
        }
    }
    connection.close().await?;
    Ok(Databases { patients: with_database(url, "patients"), billing: with_database(url, "billing") })
}

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
        if running_broker(settings, home).is_some() {
            return Ok(());
        }
        fs::create_dir_all(&directory)?;
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
    for mut service in services(settings, &home).into_iter().rev().flatten() {
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
    launches(settings, home, &nowhere, "").map(Launch::running)
}

/// Whether one of the services runs.
pub(crate) fn is_up(settings: &Settings) -> Outcome<bool> {
    Ok(services(settings, &home::directory()?).iter().any(Option::is_some))
}

/// Kills a service, as a crash does.
pub(crate) async fn kill(settings: &Settings, name: &str) -> Outcome {
    let running = services(settings, &home::directory()?);
    let Some(mut service) = running.into_iter().flatten().find(|service| service.launch().name == name) else {
        return Err(Failure(format!("No service {name:?} is running.")));
    };
    service.process().kill().await;
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
            let place = format!("psql -U postgres -h {} patients", cluster.socket_directory().display());
            part("PostgreSQL", Some(cluster.process().pid()), "running", place)
        }
        None => stopped("PostgreSQL"),
    });
    parts.push(match running_broker(settings, &home) {
        _ if settings.kafka.is_some() => part("broker", None, "given", settings.kafka_address()),
        Some(mut broker) => part(&broker_name(&home), Some(broker.process().pid()), "running", broker.address()),
        None => stopped("broker"),
    });
    let launches = launches(settings, &home, &Databases { patients: String::new(), billing: String::new() }, "");
    for (launch, service) in launches.iter().zip(services(settings, &home)) {
        parts.push(match service {
            Some(mut service) => {
                let state = if service.is_ready().await { "ready" } else { "unready" };
                part(launch.name, Some(service.process().pid()), state, format!("http://{}", service.address()))
            }
            None => stopped(launch.name),
        });
    }
    Ok(parts)
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
    Ok(fs::remove_dir_all(home::directory()?)?)
}
