//! Builds the services.

use std::{path::Path, process::Command};

use crate::{Failure, Outcome};

const SERVICES: [&str; 3] = ["patient-service", "billing-service", "analytics-service"];

/// Builds the services in the profile in which we were built, with cargo's progress on the terminal.
pub(crate) fn services() -> Outcome {
    if std::env::var_os("SERVICE_BINARIES").is_some() {
        return Ok(());
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked"]).args(SERVICES.iter().flat_map(|name| ["-p", name]));
    if testbed::service::binaries()?.ends_with(Path::new("release")) {
        cargo.arg("--release");
    }
    match cargo.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Failure("The services could not be built; cargo says why above.".to_owned())),
        Err(error) => Err(Failure(format!("cargo cannot be run: {error}"))),
    }
}
