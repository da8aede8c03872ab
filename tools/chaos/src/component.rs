//! A component of the system: a service, the broker or PostgreSQL, and the faults that can be injected into it.

use std::time::Duration;

use testbed::{Error, Scratch, Signal, broker::Broker, failover::ReplicatedPostgres, service::Service};

use crate::{docker::Container, schedule::Fault};

/// How often a component that does not start is tried.
const MAX_STARTS: usize = 3;

/// A component, as processes on this machine or as a container.
#[derive(Debug)]
pub(crate) enum Component {
    Service(Service),
    Broker(Broker),
    Postgres(Box<ReplicatedPostgres>),
    Container(Container),
}

impl Component {
    /// Injects a fault and ends it. Afterwards the component runs, though it may not be ready.
    ///
    /// # Errors
    /// If it does not start.
    pub(crate) async fn inject(&mut self, fault: Fault, scratch: &Scratch) -> Result<(), Error> {
        match fault {
            Fault::Kill { down, again } => {
                self.kill().await?;
                smol::Timer::after(down).await;
                self.start(scratch).await?;
                if let Some(again) = again {
                    smol::Timer::after(again).await;
                    self.kill().await?;
                    self.start(scratch).await?;
                }
                Ok(())
            }
            Fault::Freeze(time) => {
                self.freeze().await?;
                smol::Timer::after(time).await;
                self.thaw().await
            }
            Fault::Restart => {
                self.stop().await?;
                self.start(scratch).await
            }
            Fault::Stop { down } => {
                self.stop().await?;
                smol::Timer::after(down).await;
                self.start(scratch).await
            }
        }
    }

    /// Fails over to the standby. False if there is none.
    ///
    /// # Errors
    /// If the standby cannot take over.
    pub(crate) async fn fail_over(&mut self, scratch: &Scratch) -> Result<bool, Error> {
        match self {
            Self::Postgres(postgres) if postgres.has_standby() => postgres.fail_over(scratch).await.map(|()| true),
            _ => Ok(false),
        }
    }

    async fn kill(&mut self) -> Result<(), Error> {
        match self {
            Self::Service(service) => service.process().kill().await,
            Self::Broker(broker) => broker.process().kill().await,
            // Its backends too: they would hold the shared memory for a while.
            Self::Postgres(postgres) => {
                postgres.primary().process().signal_all(Signal::KILL);
                postgres.primary().process().kill().await;
            }
            Self::Container(container) => container.kill().await?,
        }
        Ok(())
    }

    async fn freeze(&mut self) -> Result<(), Error> {
        match self {
            Self::Container(container) => container.pause().await,
            processes => {
                processes.signal(Signal::STOP);
                Ok(())
            }
        }
    }

    async fn thaw(&mut self) -> Result<(), Error> {
        match self {
            Self::Container(container) => container.unpause().await,
            processes => {
                processes.signal(Signal::CONT);
                Ok(())
            }
        }
    }

    fn signal(&mut self, signal: Signal) {
        match self {
            Self::Service(service) => service.process().signal(signal),
            Self::Broker(broker) => broker.process().signal(signal),
            Self::Postgres(postgres) => postgres.primary().process().signal_all(signal),
            Self::Container(_) => {}
        }
    }

    async fn stop(&mut self) -> Result<(), Error> {
        match self {
            Self::Service(service) => drop(service.stop().await),
            Self::Broker(broker) => broker.stop().await,
            Self::Postgres(postgres) => postgres.primary().stop().await,
            Self::Container(container) => container.stop().await?,
        }
        Ok(())
    }

    async fn start(&mut self, scratch: &Scratch) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            let started = match self {
                Self::Service(service) => service.restart(),
                Self::Broker(broker) => broker.restart().await,
                Self::Postgres(postgres) => postgres.primary().restart().await,
                Self::Container(container) => container.start().await,
            };
            match started {
                Ok(()) => break,
                Err(error) if attempt == MAX_STARTS => return Err(error),
                Err(_) => attempt += 1,
            }
            self.kill().await?;
            smol::Timer::after(Duration::from_secs(1)).await;
        }
        let process = match self {
            Self::Service(service) => service.process(),
            Self::Broker(broker) => broker.process(),
            Self::Postgres(postgres) => postgres.primary().process(),
            Self::Container(_) => return Ok(()),
        };
        Ok(scratch.guard(process)?)
    }

    /// Waits until a service is ready. PostgreSQL and the broker are ready when they have started.
    ///
    /// # Errors
    /// If it is not ready in time.
    pub(crate) async fn until_ready(&mut self) -> Result<(), Error> {
        match self {
            Self::Service(service) => service.until_ready().await,
            Self::Container(container) => container.until_ready().await,
            Self::Broker(_) | Self::Postgres(_) => Ok(()),
        }
    }

    /// The panics in the log of a service.
    pub(crate) async fn panics(&self) -> Vec<String> {
        let log = match self {
            Self::Service(service) => service.log(),
            Self::Container(container) => container.log().await.unwrap_or_default(),
            Self::Broker(_) | Self::Postgres(_) => String::new(),
        };
        log.lines().filter(|line| line.contains("panicked at")).map(str::to_owned).collect()
    }
}
