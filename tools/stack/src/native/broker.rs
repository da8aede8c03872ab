//! The broker: Apache Kafka or Nisshi, as a process of this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow};
use testbed::broker::{Broker, Kind, Size};

use super::launch::rotate;
use crate::{install, secure::Secure, settings::Settings, terminal::step};

/// In the broker's directory: its port.
const PORT_FILE: &str = "port";

fn directory(home: &Path) -> PathBuf {
    home.join("broker")
}

/// In the broker's directory: the kind of broker whose data it contains.
fn kind_file(home: &Path) -> PathBuf {
    directory(home).join("kind")
}

fn kind_of_data(home: &Path) -> Option<Kind> {
    match fs::read_to_string(kind_file(home)).ok()?.trim() {
        "kafka" => Some(Kind::Kafka),
        "nisshi" => Some(Kind::Nisshi),
        _ => None,
    }
}

/// `cleanup.policy` of a topic on this broker. Nisshi compacts at each start, whatever the topic's lags are, and so deletes
/// events that analytics-service has not read.
pub(super) fn cleanup_policy(home: &Path) -> &'static str {
    if kind_of_data(home) == Some(Kind::Nisshi) { "delete" } else { "compact" }
}

/// The name of the broker in messages.
pub(super) fn name(home: &Path) -> String {
    kind_of_data(home).map_or("the broker".to_owned(), |kind| kind.to_string())
}

/// The broker if it runs.
pub(super) fn running(settings: &Settings, home: &Path) -> Option<Broker> {
    Broker::running(kind_of_data(home)?, &directory(home), settings.kafka_port, Size::Full)
}

/// Starts the broker, unless one is given. Returns its address. `renewed`: its certificate is new.
pub(super) async fn start(settings: &Settings, home: &Path, renewed: bool) -> Result<String> {
    if settings.kafka.is_some() {
        return Ok(settings.kafka_address());
    }
    let secure = Secure::of_checkout()?;
    let before = kind_of_data(home);
    let requested = settings.broker.map(|broker| broker.0);
    if let (Some(before), Some(requested)) = (before, requested.filter(|requested| before != Some(*requested))) {
        return Err(anyhow!(
            "{before} has the events of this system, and {requested} cannot read them. Unset BROKER, or delete all data: \
             just reset"
        ));
    }
    let kind = match secure {
        Some(_) => Kind::Kafka,
        None => install::broker(requested.or(before)).await?,
    };
    let listener = secure.as_ref().map(Secure::broker_listener).transpose()?;
    let directory = directory(home);
    let start = async {
        if let Some(mut running) = running(settings, home) {
            let port = fs::read_to_string(directory.join(PORT_FILE)).unwrap_or_default();
            if port.trim() == running.port().to_string() && !renewed {
                if let Some(listener) = listener.clone() {
                    running = running.with_listener(listener);
                }
                return Ok(running.resume().await?);
            }
            // KAFKA_PORT has changed, or the certificate, which the broker reads at its start.
            running.stop().await;
        }
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(PORT_FILE), format!("{}\n", settings.kafka_port))?;
        fs::write(kind_file(home), if kind == Kind::Kafka { "kafka\n" } else { "nisshi\n" })?;
        rotate(&directory.join("broker.log"))?;
        match listener.clone() {
            None => Broker::start(kind, &directory, settings.kafka_port, Size::Full, "").await?,
            Some(listener) => Broker::start_secure(kind, &directory, settings.kafka_port, Size::Full, listener).await?,
        };
        Ok::<_, anyhow::Error>(())
    };
    let start = async {
        start.await?;
        match &secure {
            Some(secure) => Box::pin(secure.grant_permissions(settings, false)).await,
            None => Ok(()),
        }
    };
    step(&format!("Starting {kind}"), "", Box::pin(start)).await?;
    Ok(settings.kafka_address())
}
