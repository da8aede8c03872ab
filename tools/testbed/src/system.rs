//! The whole system as processes of a test: the real binaries on ports and databases of their own.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value as Json;

use crate::{
    Scratch, StartError,
    broker::{Broker, Kind},
    clock::SteppedClock,
    http::Client,
    ports,
    postgres::{Cluster, Durability},
    service::{Launch, Service},
};

/// What the services of a system stand on.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The database of patient-service.
    pub patients_database: String,
    /// The database of billing-service.
    pub billing_database: String,
    /// The address of the broker.
    pub kafka: String,
    /// The topic, of this system alone.
    pub topic: String,
}

/// A running system. Its processes end with it.
#[derive(Debug)]
pub struct System {
    /// patient-service, as many replicas as wanted.
    pub patients: Vec<Service>,
    /// billing-service.
    pub billing: Service,
    /// analytics-service.
    pub analytics: Service,
    /// The directory of logs and state; it kills the processes of this system when it is dropped.
    pub scratch: Scratch,
    ground: Ground,
}

/// A PostgreSQL and a broker of one test, to be hurt.
#[derive(Debug)]
pub struct OwnGround {
    /// The databases.
    pub cluster: Cluster,
    /// The clock of the databases, which is right until it is set.
    pub clock: SteppedClock,
    /// The broker.
    pub broker: Broker,
    /// Where they keep their data, and what ends them.
    pub scratch: Scratch,
}

impl Ground {
    /// New databases and a new topic on the servers that all tests of this process share.
    ///
    /// # Panics
    /// If they cannot be had.
    pub async fn shared(kind: Kind) -> Self {
        let kafka = crate::shared_broker(kind).await;
        Self {
            patients_database: crate::shared_database().await,
            billing_database: crate::shared_database().await,
            kafka: kafka.bootstrap.0[0].to_string(),
            topic: format!("patient-{:016x}", fastrand::u64(..)),
        }
    }
}

impl OwnGround {
    /// Starts them.
    ///
    /// # Errors
    /// If one of them does not come up, or there is no C compiler for the clock.
    pub async fn start(kind: Kind) -> Result<Self, StartError> {
        let scratch = Scratch::new()?;
        let clock = SteppedClock::new(scratch.path())?;
        let mut cluster =
            Cluster::start_with_clock(&scratch.path().join("postgres"), Durability::Process, &clock).await?;
        scratch.guard(cluster.process())?;
        for name in ["patients", "billing"] {
            cluster.create_database(name).await?;
        }
        let mut broker = Broker::start_anywhere(kind, &scratch.path().join("broker"), "").await?;
        scratch.guard(broker.process())?;
        Ok(Self { cluster, clock, broker, scratch })
    }

    /// What services stand on.
    pub fn ground(&self) -> Ground {
        Ground {
            patients_database: self.cluster.url("patients"),
            billing_database: self.cluster.url("billing"),
            kafka: self.broker.address(),
            topic: "patient".to_owned(),
        }
    }

    /// Starts the broker again after it was killed.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart_broker(&mut self) -> Result<(), StartError> {
        self.broker.restart().await?;
        Ok(self.scratch.guard(self.broker.process())?)
    }

    /// Starts PostgreSQL again after it was killed.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart_postgres(&mut self) -> Result<(), StartError> {
        self.cluster.restart().await?;
        Ok(self.scratch.guard(self.cluster.process())?)
    }
}

impl System {
    /// Starts a system with so many replicas of patient-service, and waits until it is ready. `extra` are more settings,
    /// given to every service.
    ///
    /// # Errors
    /// If a service does not come up.
    pub async fn start(ground: Ground, replicas: usize, extra: &[(&str, &str)]) -> Result<Self, StartError> {
        let scratch = Scratch::new()?;
        let plan = Plan { ground: &ground, directory: scratch.path(), extra };
        let grpc_port = ports::free();
        let billing = start(&scratch, plan.billing(grpc_port))?;
        let analytics = start(&scratch, plan.analytics())?;
        let mut patients = Vec::new();
        for number in 0..replicas {
            patients.push(start(&scratch, plan.patient(number, grpc_port))?);
        }
        let mut system = Self { patients, billing, analytics, ground, scratch };
        for service in system.services() {
            service.until_ready().await?;
        }
        Ok(system)
    }

    /// All services, in the order in which they are started.
    pub fn services(&mut self) -> impl Iterator<Item = &mut Service> {
        [&mut self.billing, &mut self.analytics].into_iter().chain(&mut self.patients)
    }

    /// What the services stand on.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The directory of the logs and of analytics' state.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// The file of analytics' state.
    pub fn state_file(&self) -> PathBuf {
        state_file(self.scratch.path())
    }

    /// Starts a service again on the same port after it has ended. It may not be ready yet.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn revive(&mut self, which: impl Fn(&mut Self) -> &mut Service) -> Result<(), StartError> {
        which(self).restart()?;
        self.guard(which)
    }

    /// Starts a service again as [`revive`](Self::revive) does, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart(&mut self, which: impl Fn(&mut Self) -> &mut Service) -> Result<(), StartError> {
        self.revive(&which)?;
        which(self).until_ready().await
    }

    /// Stops a service in order and starts it again in another way, such as with more settings. It may not be ready yet.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn relaunch(
        &mut self,
        which: impl Fn(&mut Self) -> &mut Service,
        how: impl FnOnce(Launch) -> Result<Service, StartError>,
    ) -> Result<(), StartError> {
        which(self).stop().await;
        *which(self) = how(which(self).launch().clone())?;
        self.guard(which)
    }

    fn guard(&mut self, which: impl Fn(&mut Self) -> &mut Service) -> Result<(), StartError> {
        let process = which(self).process();
        let (pid, started) = (process.pid(), process.started().unwrap_or_default());
        Ok(self.scratch.note(pid, &started)?)
    }

    /// A client of the first patient-service.
    pub fn patient_client(&self) -> Client {
        self.patients[0].client()
    }

    /// Waits until analytics shows what the caller wants; gives the summary.
    ///
    /// # Errors
    /// If that takes longer than `limit`; the error shows the last summary.
    pub async fn until_summary(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&Json) -> bool,
    ) -> Result<Json, StartError> {
        let client = self.analytics.client();
        let end = Instant::now() + limit;
        loop {
            let summary = client.get("/analytics/summary").await.map(|answer| answer.json()).unwrap_or_default();
            if wanted(&summary) {
                return Ok(summary);
            }
            if Instant::now() > end {
                return Err(StartError::new(format!("analytics does not show it: {summary}")));
            }
            smol::Timer::after(Duration::from_millis(10)).await;
        }
    }
}

fn start(scratch: &Scratch, launch: Launch) -> Result<Service, StartError> {
    let mut service = launch.start()?;
    scratch.guard(service.process())?;
    Ok(service)
}

fn state_file(directory: &Path) -> PathBuf {
    directory.join("analytics.sqlite")
}

/// How the services of a system are launched.
struct Plan<'a> {
    ground: &'a Ground,
    directory: &'a Path,
    extra: &'a [(&'a str, &'a str)],
}

impl Plan<'_> {
    fn launch(&self, name: &'static str, label: String, own: &[(&str, String)]) -> Launch {
        let Ground { kafka, topic, .. } = self.ground;
        let common = [
            ("KAFKA_BOOTSTRAP_SERVERS", kafka.clone()),
            ("KAFKA_TOPIC", topic.clone()),
            ("KAFKA_DEAD_LETTER_TOPIC", format!("{topic}.dlq")),
            ("LOG_FORMAT", "json".to_owned()),
        ];
        let extra = self.extra.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let all = common.into_iter().chain(own.iter().cloned()).chain(extra);
        let environment = all.map(|(name, value)| (name.to_owned(), value)).collect();
        Launch { name, port: ports::free(), environment, directory: self.directory.to_owned(), label }
    }

    fn billing(&self, grpc_port: u16) -> Launch {
        let own = [("DATABASE_URL", self.ground.billing_database.clone()), ("GRPC_SERVER_PORT", grpc_port.to_string())];
        self.launch("billing-service", "billing-service".to_owned(), &own)
    }

    fn analytics(&self) -> Launch {
        let own = [("STATE_FILE", state_file(self.directory).display().to_string())];
        self.launch("analytics-service", "analytics-service".to_owned(), &own)
    }

    fn patient(&self, number: usize, grpc_port: u16) -> Launch {
        let own = [
            ("DATABASE_URL", self.ground.patients_database.clone()),
            ("BILLING_SERVICE_ADDRESS", "127.0.0.1".to_owned()),
            ("BILLING_SERVICE_GRPC_PORT", grpc_port.to_string()),
        ];
        self.launch("patient-service", format!("patient-service-{number}"), &own)
    }
}
