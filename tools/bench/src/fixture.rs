//! The servers that everything is measured on: one PostgreSQL with fsync, one Apache Kafka, and the services.

use std::{path::Path, time::Duration};

use testbed::{
    Process, Scratch,
    broker::{Broker, Kind, Size},
    ports,
    postgres::{Cluster, Durability},
    system::{self, System},
};

use crate::{Outcome, progress::step};

/// Pause between two measurements, for the background work that the first one caused.
pub(crate) const SETTLE_TIME: Duration = Duration::from_secs(2);

/// The servers of a run. They end with it.
pub(crate) struct Fixture {
    pub(crate) cluster: Cluster,
    pub(crate) broker: Broker,
    /// Given to every service besides its own settings.
    settings: Vec<(String, String)>,
    counts_statements: bool,
    scratch: Scratch,
}

impl Fixture {
    pub(crate) async fn start(settings: &[(String, String)]) -> Outcome<Self> {
        if !Kind::Kafka.is_installed() {
            step("Fetching Apache Kafka", Kind::Kafka.install()).await?;
        }
        let scratch = Scratch::new()?;
        let start = async {
            let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Disk).await?;
            scratch.guard(cluster.process())?;
            let port = ports::free();
            let mut broker = Broker::start(Kind::Kafka, &scratch.path().join("broker"), port, Size::Full, "").await?;
            scratch.guard(broker.process())?;
            Ok::<_, testbed::Error>((cluster, broker))
        };
        let (cluster, broker) = step("Starting PostgreSQL and Apache Kafka", start).await?;
        Ok(Self { cluster, broker, settings: settings.to_vec(), counts_statements: false, scratch })
    }

    /// Turns pg_stat_statements on, which counts statements by database, if it is installed.
    pub(crate) async fn count_statements(&mut self) -> Outcome {
        let preload = "alter system set shared_preload_libraries = 'pg_stat_statements'";
        if self.cluster.run("postgres", "load 'pg_stat_statements'").await.is_err() {
            eprintln!("Statements are not counted: this PostgreSQL has no pg_stat_statements.");
            return Ok(());
        }
        self.cluster.run("postgres", preload).await?;
        self.cluster.stop().await;
        self.cluster.restart().await?;
        self.scratch.guard(self.cluster.process())?;
        self.cluster.run("postgres", "create extension if not exists pg_stat_statements").await?;
        self.counts_statements = true;
        Ok(())
    }

    /// Whether statements are counted.
    pub(crate) fn counts_statements(&self) -> bool {
        self.counts_statements
    }

    /// Starts the services on databases and a topic of this name.
    pub(crate) async fn system(&self, name: &str, extra: &[(&str, &str)]) -> Outcome<System> {
        let (patients, billing) = (format!("{name}_patients"), format!("{name}_billing"));
        for database in [&patients, &billing] {
            self.cluster.create_database(database).await?;
        }
        let backing_services = system::BackingServices {
            patients_database: self.cluster.url(&patients),
            billing_database: self.cluster.url(&billing),
            kafka: self.broker.address(),
            topic: format!("{name}.patient"),
        };
        let settings = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let all: Vec<_> = extra.iter().copied().chain(settings).collect();
        let system = System::start(backing_services, 1, &all);
        Ok(step("Starting the services", system).await?)
    }

    /// Arguments of `load` that measure every process of the system.
    pub(crate) fn watched(&mut self, system: &mut System) -> String {
        let processes = [
            ("postgresql", self.cluster.process().pid()),
            ("kafka", self.broker.process().pid()),
            ("patient-service", system.patients[0].process().pid()),
            ("billing-service", system.billing.process().pid()),
            ("analytics-service", system.analytics.process().pid()),
        ];
        processes.into_iter().map(|(name, pid)| format!("--watch {name}={pid} ")).collect()
    }

    /// Has this process killed when the run ends.
    pub(crate) fn guard(&self, process: &Process) -> Outcome {
        Ok(self.scratch.guard(process)?)
    }

    /// Lets the servers finish the background work of the last measurement.
    pub(crate) async fn settle(&self) -> Outcome {
        self.cluster.run("postgres", "checkpoint").await?;
        smol::Timer::after(SETTLE_TIME).await;
        Ok(())
    }

    /// A directory for files of the run.
    pub(crate) fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Inserts patients `from` to `to` into the database of the system `name`. Their ids are derived from their numbers.
    pub(crate) async fn seed(&self, name: &str, from: u64, to: u64) -> Outcome {
        const BATCH: u64 = 25_000;
        let database = format!("{name}_patients");
        let work = async {
            let mut begin = from;
            while begin < to {
                let end = (begin + BATCH).min(to);
                self.cluster.run(&database, &seed_statement(begin + 1, end)).await?;
                begin = end;
            }
            // Now, because autovacuum would do it during the measurement.
            self.cluster.run(&database, "vacuum analyze patients").await?;
            self.cluster.run(&database, "checkpoint").await
        };
        Ok(step(&format!("Adding {} patients", to - from), work).await?)
    }
}

/// Names and emails as varied as those of the load generator.
fn seed_statement(from: u64, to: u64) -> String {
    format!(
        "insert into patients (id, name, email, address, date_of_birth, registered_date)
         select md5(n::text)::uuid,
                (array['Amara','Bruno','Chen','Dilnoza','Elif','Farid','Greta','Hiroshi','Ines','Jakub','Kirsten','Lwazi',
                       'Maria','Noor','Olena','Pedro'])[1 + n % 16] || ' ' ||
                (array['Abebe','Bianchi','Castillo','Dubois','Eriksson','Fischer','Garcia','Haddad','Ivanova','Jensen',
                       'Kowalski','Lindgren','Mbeki','Nakamura','Okafor','Petrov'])[1 + n / 16 % 16] || ' ' || n,
                'seed.' || n || '@example.org', n % 1000 || ' Main Street, Springfield',
                date '1930-01-01' + (n * 7919 % 32000)::int, date '2020-01-01' + (n % 2000)::int
         from generate_series({from}::bigint, {to}::bigint) n"
    )
}
