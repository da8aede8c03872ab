//! Runs `docker` and Compose.

use std::{collections::BTreeMap, env, process::Output, time::Duration};

use anyhow::{Result, anyhow};

/// Timeout of a command that reads the state of the engine. Compose 1 is a Python program, which takes a minute to start on a
/// busy machine.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(120);
/// The first version of Compose with profiles.
pub(super) const OLDEST_COMPOSE: (u32, u32) = (1, 28);

/// The stdout of a program.
pub(super) async fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with(program, arguments, &BTreeMap::new()).await
}

pub(super) async fn run_with(
    program: &str,
    arguments: &[&str],
    environment: &BTreeMap<String, String>,
) -> Result<String> {
    let output = output(program, arguments, environment).await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = match trimmed(&output.stderr) {
        stderr if stderr.is_empty() => output.status.to_string(),
        stderr => stderr,
    };
    Err(anyhow!("{program} {}: {reason}", arguments.first().unwrap_or(&"")))
}

/// The stdout and the stderr of a program.
pub(super) async fn run_both(program: &str, arguments: &[&str]) -> Result<String> {
    let output = output(program, arguments, &BTreeMap::new()).await?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

async fn output(program: &str, arguments: &[&str], environment: &BTreeMap<String, String>) -> Result<Output> {
    output_within(RESPONSE_TIMEOUT, program, arguments, environment).await
}

pub(super) async fn output_within(
    timeout: Duration,
    program: &str,
    arguments: &[&str],
    environment: &BTreeMap<String, String>,
) -> Result<Output> {
    let output = smol::process::Command::new(program).args(arguments).envs(environment).kill_on_drop(true).output();
    let output = runtime::timeout(timeout, output).await;
    let output = output.map_err(|_| anyhow!("{program} does not respond within {timeout:?}."))?;
    output.map_err(|error| anyhow!("{program}: {error}"))
}

/// A variable as Compose gets it: these, or else our environment. Empty if it is not set.
pub(super) fn variable(environment: &BTreeMap<String, String>, name: &str) -> String {
    environment.get(name).cloned().or_else(|| env::var(name).ok()).unwrap_or_default()
}

pub(super) fn trimmed(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).trim().to_owned()
}

/// The major and minor version in `2.40.3`, `v2.40.3`, `1.29.2` or a sentence with one of them.
pub(super) fn compose_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_compose_are_compared() {
        assert!(compose_version("v2.40.3\n") >= Some(OLDEST_COMPOSE));
        assert!(compose_version("1.29.2") >= Some(OLDEST_COMPOSE));
        assert!(compose_version("1.25.0") < Some(OLDEST_COMPOSE));
        assert!(compose_version("Docker Compose version v5.0.1\n") >= Some(OLDEST_COMPOSE));
        assert!(compose_version("unknown") < Some(OLDEST_COMPOSE));
    }
}
