//! The whole system as processes of a test: the real binaries, with their own ports and databases.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value as Json;

use crate::{
    Error, Scratch,
    broker::{Broker, Kind},
    clock::SteppedClock,
    http::Client,
    identities::Identities,
    ports,
    postgres::{Cluster, Durability},
    service::{Launch, Service},
};

/// The databases, the broker and the topic that the services of a system use.
#[derive(Clone, Debug)]
pub struct BackingServices {
    /// The database of patient-service.
    pub patients_database: String,
    /// The database of billing-service.
    pub billing_database: String,
    /// The address of the broker.
    pub kafka: String,
    /// The topic, of this system alone.
    pub topic: String,
}

/// A running system. Dropping it kills its processes.
#[derive(Debug)]
pub struct System {
    /// The replicas of patient-service.
    pub patients: Vec<Service>,
    /// billing-service.
    pub billing: Service,
    /// analytics-service.
    pub analytics: Service,
    /// The directory of logs and state; it kills the processes of this system when it is dropped.
    pub scratch: Scratch,
    backing_services: BackingServices,
    identities: Option<Identities>,
}

/// PostgreSQL and a broker for one test alone, which may kill them.
#[derive(Debug)]
pub struct DedicatedServers {
    /// The databases.
    pub cluster: Cluster,
    /// The clock of PostgreSQL; correct until it is set.
    pub clock: SteppedClock,
    /// The broker.
    pub broker: Broker,
    /// The directory of their data; it kills them when it is dropped.
    pub scratch: Scratch,
}

impl BackingServices {
    /// New databases and a new topic on the servers that all tests of this process share.
    ///
    /// # Panics
    /// If PostgreSQL or the broker cannot be started.
    pub async fn shared(kind: Kind) -> Self {
        let kafka = crate::shared_broker(kind).await;
        Self {
            patients_database: crate::shared_database().await,
            billing_database: crate::shared_database().await,
            kafka: kafka.bootstrap.0[0].to_string(),
            topic: format!("patient-{:016x}", fastrand::u64(..)),
        }
    }

    /// New databases on the shared server, and the topic `patient` on a test's own broker at this address.
    ///
    /// # Panics
    /// If PostgreSQL cannot be started.
    pub async fn on_broker(address: String) -> Self {
        Self {
            patients_database: crate::shared_database().await,
            billing_database: crate::shared_database().await,
            kafka: address,
            topic: "patient".to_owned(),
        }
    }
}

impl DedicatedServers {
    /// Starts them.
    ///
    /// # Errors
    /// If one of them does not come up, or there is no C compiler for the clock.
    pub async fn start(kind: Kind) -> Result<Self, Error> {
        let scratch = Scratch::new()?;
        let clock = SteppedClock::new(scratch.path())?;
        let mut cluster =
            Cluster::start_with_clock(&scratch.path().join("postgres"), Durability::Process, &clock, None).await?;
        scratch.guard(cluster.process())?;
        for name in ["patients", "billing"] {
            cluster.create_database(name).await?;
        }
        let mut broker = Broker::start_on_free_port(kind, &scratch.path().join("broker"), "").await?;
        scratch.guard(broker.process())?;
        Ok(Self { cluster, clock, broker, scratch })
    }

    /// The addresses that services need.
    pub fn backing_services(&self) -> BackingServices {
        BackingServices {
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
    pub async fn restart_broker(&mut self) -> Result<(), Error> {
        self.broker.restart().await?;
        Ok(self.scratch.guard(self.broker.process())?)
    }

    /// Starts PostgreSQL again after it was killed.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart_postgres(&mut self) -> Result<(), Error> {
        self.cluster.restart().await?;
        Ok(self.scratch.guard(self.cluster.process())?)
    }
}

impl System {
    /// Starts a system with `replicas` of patient-service, and waits until it is ready. Every service also gets the settings
    /// in `extra`.
    ///
    /// # Errors
    /// If a service does not come up.
    pub async fn start(
        backing_services: BackingServices,
        replicas: usize,
        extra: &[(&str, &str)],
    ) -> Result<Self, Error> {
        Self::start_with(backing_services, replicas, extra, None).await
    }

    /// Starts a system as [`start`](Self::start) does, with identities and TLS. The URLs of the databases are those of a superuser.
    ///
    /// # Errors
    /// If a service does not come up.
    pub async fn start_secure(
        backing_services: BackingServices,
        replicas: usize,
        extra: &[(&str, &str)],
        identities: &Identities,
    ) -> Result<Self, Error> {
        Self::start_with(backing_services, replicas, extra, Some(identities.clone())).await
    }

    async fn start_with(
        backing_services: BackingServices,
        replicas: usize,
        extra: &[(&str, &str)],
        identities: Option<Identities>,
    ) -> Result<Self, Error> {
        let scratch = Scratch::new()?;
        let identified = identities.as_ref();
        let launcher =
            Launcher { backing_services: &backing_services, directory: scratch.path(), extra, identities: identified };
        let grpc_port = ports::free();
        let billing = launcher.billing(grpc_port).start_guarded(&scratch)?;
        let analytics = launcher.analytics().start_guarded(&scratch)?;
        let mut patients = Vec::new();
        for number in 0..replicas {
            patients.push(launcher.patient(number, grpc_port).start_guarded(&scratch)?);
        }
        let mut system = Self { patients, billing, analytics, scratch, backing_services, identities };
        for service in system.services() {
            service.until_ready().await?;
        }
        Ok(system)
    }

    /// All services, in the order in which they are started.
    pub fn services(&mut self) -> impl Iterator<Item = &mut Service> {
        [&mut self.billing, &mut self.analytics].into_iter().chain(&mut self.patients)
    }

    /// The databases, the broker and the topic that the services use.
    pub fn backing_services(&self) -> &BackingServices {
        &self.backing_services
    }

    /// What a client of the broker needs, as a user who may do everything.
    ///
    /// # Errors
    /// If a certificate cannot be read.
    pub fn kafka_security(&self) -> Result<kafka::Security, Error> {
        self.identities.as_ref().map_or(Ok(kafka::Security::default()), |all| all.broker_listener().security())
    }

    /// The directory of the logs and of analytics' state.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// The file of analytics' state.
    pub fn state_file(&self) -> PathBuf {
        state_file(self.scratch.path())
    }

    /// How another analytics-service is started beside the system's own, with a port and a state of its own.
    pub fn another_analytics(&self, number: usize) -> Launch {
        let mut launch = self.analytics.launch().clone();
        (launch.port, launch.label) = (ports::free(), format!("analytics-service-{number}"));
        let state = self.directory().join(format!("{}.sqlite", launch.label));
        launch.environment.retain(|(name, _)| name != "STATE_FILE");
        launch.environment.push(("STATE_FILE".to_owned(), state.display().to_string()));
        launch
    }

    /// Starts a service again on the same port after it has ended. It may not be ready yet.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart_without_waiting(&mut self, which: impl Fn(&mut Self) -> &mut Service) -> Result<(), Error> {
        which(self).restart()?;
        self.guard(which)
    }

    /// Starts a service again as [`restart_without_waiting`](Self::restart_without_waiting) does, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart(&mut self, which: impl Fn(&mut Self) -> &mut Service) -> Result<(), Error> {
        self.restart_without_waiting(&which)?;
        which(self).until_ready().await
    }

    /// Stops a service and starts it again by `start`, for example with more settings. It may not be ready yet.
    ///
    /// # Errors
    /// If it cannot be started.
    pub async fn restart_with(
        &mut self,
        which: impl Fn(&mut Self) -> &mut Service,
        start: impl FnOnce(Launch) -> Result<Service, Error>,
    ) -> Result<(), Error> {
        which(self).stop().await;
        *which(self) = start(which(self).launch().clone())?;
        self.guard(which)
    }

    fn guard(&mut self, which: impl Fn(&mut Self) -> &mut Service) -> Result<(), Error> {
        let process = which(self).process();
        let (pid, started) = (process.pid(), process.started().unwrap_or_default());
        Ok(self.scratch.register_pid(pid, &started)?)
    }

    /// A client of the first patient-service.
    pub fn patient_client(&self) -> Client {
        self.patients[0].client()
    }

    /// Waits until the summary of analytics is as `expected` says; returns it.
    ///
    /// # Errors
    /// After `limit`; the error shows the last summary.
    pub async fn until_summary(&self, limit: Duration, mut expected: impl FnMut(&Json) -> bool) -> Result<Json, Error> {
        let client = self.analytics.client();
        let end = Instant::now() + limit;
        loop {
            let summary = client.get("/analytics/summary").await.map(|response| response.json()).unwrap_or_default();
            if expected(&summary) {
                return Ok(summary);
            }
            if Instant::now() > end {
                return Err(Error::new(format!("the summary of analytics is not as expected: {summary}")));
            }
            smol::Timer::after(Duration::from_millis(10)).await;
        }
    }
}

fn state_file(directory: &Path) -> PathBuf {
    directory.join("analytics.sqlite")
}

/// The settings from which the services of a system are launched.
struct Launcher<'a> {
    backing_services: &'a BackingServices,
    directory: &'a Path,
    extra: &'a [(&'a str, &'a str)],
    identities: Option<&'a Identities>,
}

impl Launcher<'_> {
    fn launch(&self, name: &'static str, label: String, own: &[(&str, String)]) -> Launch {
        let BackingServices { kafka, topic, .. } = self.backing_services;
        let common = [
            ("KAFKA_BOOTSTRAP_SERVERS", kafka.clone()),
            ("KAFKA_TOPIC", topic.clone()),
            ("KAFKA_DEAD_LETTER_TOPIC", format!("{topic}.dlq")),
            ("LOG_FORMAT", "json".to_owned()),
        ];
        let extra = self.extra.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let secure = self.identities.map(|identities| identities.settings(name)).unwrap_or_default();
        // Of settings that come twice, the last counts.
        let mut environment = Vec::<(String, String)>::new();
        for (name, value) in common.into_iter().chain(own.iter().cloned()).chain(secure).chain(extra) {
            environment.retain(|(known, _)| known != name);
            environment.push((name.to_owned(), value));
        }
        let access = self.identities.map(|identities| identities.access().clone());
        Launch { name, port: ports::free(), environment, directory: self.directory.to_owned(), label, access }
    }

    fn billing(&self, grpc_port: u16) -> Launch {
        let own = [
            ("DATABASE_URL", self.backing_services.billing_database.clone()),
            ("GRPC_SERVER_PORT", grpc_port.to_string()),
        ];
        self.launch("billing-service", "billing-service".to_owned(), &own)
    }

    fn analytics(&self) -> Launch {
        let own = [("STATE_FILE", state_file(self.directory).display().to_string())];
        self.launch("analytics-service", "analytics-service".to_owned(), &own)
    }

    fn patient(&self, number: usize, grpc_port: u16) -> Launch {
        let own = [
            ("DATABASE_URL", self.backing_services.patients_database.clone()),
            // Two settings, because tests replace the port alone.
            ("BILLING_SERVICE_ADDRESS", "127.0.0.1".to_owned()),
            ("BILLING_SERVICE_GRPC_PORT", grpc_port.to_string()),
            // Nisshi compacts at each start, whatever the topic's lags: then a test would miss events that it waits for.
            ("KAFKA_TOPIC_CLEANUP_POLICY", "delete".to_owned()),
        ];
        self.launch("patient-service", format!("patient-service-{number}"), &own)
    }
}
