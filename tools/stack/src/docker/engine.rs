//! Whether a Docker engine responds.

use std::{io, time::Duration};

use super::command::trimmed;

/// Timeout of the check whether there is an engine.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no Docker engine.
#[derive(Clone, Debug)]
pub(crate) enum EngineError {
    /// `docker` is not installed.
    NotInstalled,
    /// `docker` cannot reach the engine; its error.
    Unreachable(String),
}

/// Checks that a Docker engine responds.
pub(crate) async fn check_engine() -> Result<(), EngineError> {
    let version = smol::process::Command::new("docker")
        .args(["version", "--format", "{{.Server.Version}}"])
        .kill_on_drop(true)
        .output();
    match runtime::timeout(ENGINE_TIMEOUT, version).await {
        Err(_) => Err(EngineError::Unreachable(format!("docker does not respond within {ENGINE_TIMEOUT:?}"))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(EngineError::NotInstalled),
        Ok(Err(error)) => Err(EngineError::Unreachable(format!("docker: {error}"))),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(EngineError::Unreachable(trimmed(&output.stderr))),
    }
}
