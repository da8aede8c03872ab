//! What each service may do on the broker. The user of the stack may do everything, and grants it.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use config::Value as _;

use super::Secure;
use crate::settings::Settings;

/// Time until the broker has taken them; its container may still have to start.
const TIMEOUT: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(500);

impl Secure {
    /// Grants the services their permissions, once the broker responds. Those that they have stay.
    pub(crate) async fn grant_permissions(&self, settings: &Settings, in_containers: bool) -> Result<()> {
        let kafka = kafka::Settings {
            bootstrap: config::HostPorts::parse(&settings.kafka_address()).map_err(anyhow::Error::msg)?,
            deadline: Duration::from_secs(5),
            client_id: "up",
            security: self.kafka_security(in_containers)?,
        };
        let permissions = testbed::permissions::of_services();
        let end = Instant::now() + TIMEOUT;
        loop {
            match kafka::grant(&kafka, &permissions).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    return Err(anyhow!("The broker does not take the permissions of the services: {error}"));
                }
                Err(_) => smol::Timer::after(POLL_INTERVAL).await,
            };
        }
    }
}
