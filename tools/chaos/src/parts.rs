//! The parts of the system, and what can be done to them.

use std::time::Duration;

use testbed::{Scratch, Signal, StartError, broker::Broker, failover::Replicated, service::Service};

use crate::{docker::Container, schedule::Fault};

/// How often a part that does not come up is started.
const MAX_STARTS: usize = 3;

/// A part of the system, as processes on this machine or as a container.
#[derive(Debug)]
pub(crate) enum Part {
    Service(Service),
    Broker(Broker),
    Postgres(Box<Replicated>),
    Container(Container),
}

impl Part {
    /// Injects the fault and ends it again. The part runs afterwards, though it may not be ready.
    ///
    /// # Errors
    /// If it does not come up.
    pub(crate) async fn inject(&mut self, fault: Fault, scratch: &Scratch) -> Result<(), StartError> {
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
        }
    }

    /// Fails over to the standby, if it has one; gives whether it has.
    ///
    /// # Errors
    /// If the standby cannot take over.
    pub(crate) async fn fail_over(&mut self, scratch: &Scratch) -> Result<bool, StartError> {
        match self {
            Self::Postgres(postgres) if postgres.has_standby() => postgres.fail_over(scratch).await.map(|()| true),
            _ => Ok(false),
        }
    }

    async fn kill(&mut self) -> Result<(), StartError> {
        match self {
            Self::Service(service) => service.process().kill().await,
            Self::Broker(broker) => broker.process().kill().await,
            // Its sessions would hold its shared memory for a while.
            Self::Postgres(postgres) => {
                postgres.primary().process().signal_all(Signal::KILL);
                postgres.primary().process().kill().await;
            }
            Self::Container(container) => container.kill().await?,
        }
        Ok(())
    }

    async fn freeze(&mut self) -> Result<(), StartError> {
        match self {
            Self::Container(container) => container.pause().await,
            processes => {
                processes.signal(Signal::STOP);
                Ok(())
            }
        }
    }

    async fn thaw(&mut self) -> Result<(), StartError> {
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

    async fn stop(&mut self) -> Result<(), StartError> {
        match self {
            Self::Service(service) => drop(service.stop().await),
            Self::Broker(broker) => broker.stop().await,
            Self::Postgres(postgres) => postgres.primary().stop().await,
            Self::Container(container) => container.stop().await?,
        }
        Ok(())
    }

    async fn start(&mut self, scratch: &Scratch) -> Result<(), StartError> {
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

    /// Waits until a service is ready; the others are when they run.
    ///
    /// # Errors
    /// If it is not ready in time.
    pub(crate) async fn until_ready(&mut self) -> Result<(), StartError> {
        match self {
            Self::Service(service) => service.until_ready().await,
            Self::Container(container) => container.until_ready().await,
            Self::Broker(_) | Self::Postgres(_) => Ok(()),
        }
    }

    /// Panics of a service, from its log.
    pub(crate) async fn panics(&self) -> Vec<String> {
        let log = match self {
            Self::Service(service) => service.log(),
            Self::Container(container) => container.log().await.unwrap_or_default(),
            Self::Broker(_) | Self::Postgres(_) => String::new(),
        };
        log.lines().filter(|line| line.contains("panicked at")).map(str::to_owned).collect()
    }
}
