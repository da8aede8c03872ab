//! PostgreSQL, as a process of this machine or given by the user.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use testbed::{
    postgres::{Cluster, Durability},
    roles,
};

use super::launch::rotate;
use crate::{
    external_databases::{self, Databases},
    install,
    secure::{Secure, databases as secure_databases},
    settings::Settings,
    terminal::step,
};

/// The directory of the cluster.
pub(super) fn directory(home: &Path) -> PathBuf {
    home.join("postgres")
}

/// The cluster if it runs.
pub(super) fn running(home: &Path) -> Option<Cluster> {
    Cluster::running(&directory(home), Durability::Disk)
}

/// Starts the cluster, unless a server is given. `renewed`: its certificate is new.
pub(super) async fn start(settings: &Settings, home: &Path, assume_yes: bool, renewed: bool) -> Result<Databases> {
    if let Some(url) = &settings.database_url {
        return external_databases::find_or_create(url.expose(), home, assume_yes).await;
    }
    install::postgres().await?;
    let secure = Secure::of_checkout()?;
    let directory = directory(home);
    let start = async {
        let mut running = running(home);
        if let Some(mut stale) = running.take_if(|_| renewed) {
            // It reads the certificate at its start.
            stale.stop().await;
        }
        let cluster = match running {
            Some(mut running) => {
                running.resume().await?;
                running
            }
            None => {
                rotate(&directory.join("postgres.log"))?;
                match &secure {
                    None => Cluster::start(&directory, Durability::Disk).await?,
                    Some(secure) => {
                        Cluster::start_with_tls(&directory, Durability::Disk, secure.postgres_listener()).await?
                    }
                }
            }
        };
        for (name, service) in secure_databases::ALL {
            cluster.create_database(name).await?;
            if secure.is_some() {
                cluster.run(name, &roles::statements(name, service)).await?;
            }
        }
        Ok::<_, anyhow::Error>(cluster)
    };
    let cluster = step("Starting PostgreSQL", "", Box::pin(start)).await?;
    urls(&cluster)
}

/// The URLs of the databases for the services.
fn urls(cluster: &Cluster) -> Result<Databases> {
    let secure = Secure::of_checkout()?;
    let url = |(database, service): (&str, &str)| match &secure {
        None => cluster.url(database),
        Some(secure) => secure.database_url(database, service),
    };
    let [patients, billing] = secure_databases::ALL.map(url);
    Ok(Databases { patients, billing })
}

/// The URLs of the databases of the system that `up` has started.
pub(super) fn of_running(settings: &Settings, home: &Path) -> Result<Databases> {
    if let Some(url) = &settings.database_url {
        return Databases::of(url.expose());
    }
    urls(&running(home).ok_or_else(|| anyhow!("PostgreSQL is not running: just up"))?)
}
