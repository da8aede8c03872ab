//! The process of the agent: `up` starts it, `down` stops it.

use std::{env, fs, path::Path, time::Duration};

use anyhow::Result;
use testbed::Process;

use crate::{home, private_file, settings::Settings};

/// The variable by which the console and the agent are told the token.
pub(crate) const TOKEN: &str = "CONSOLE_AGENT_TOKEN";
/// The agent's subcommand, and the name of its pid file and its log in the folder of the data.
const NAME: &str = "agent";
/// In the same folder: what the agent proves itself with.
const TOKEN_FILE: &str = "agent-token";
/// Time for it to end what it has begun.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The token of this system, made with the first start.
pub(crate) fn token() -> Result<String> {
    let file = home::directory()?.join(TOKEN_FILE);
    if let Ok(token) = fs::read_to_string(&file) {
        return Ok(token);
    }
    let token: String = (0..4).map(|_| format!("{:016x}", random())).collect();
    private_file::write(&file, &token)?;
    Ok(token)
}

/// From the operating system, by way of the keys of the standard library's hash maps.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

/// Starts the agent anew, so that it knows the settings of now.
pub(crate) async fn start(settings: &Settings) -> Result<()> {
    let home = home::directory()?;
    stop(&home).await;
    let process = Process::builder(NAME, env::current_exe()?, home.join("agent.log"))
        .args([NAME])
        .envs([(TOKEN, token()?), ("CONSOLE_PORT", settings.console_port.to_string())])
        .start()?;
    Ok(process.write_pid_file(&home.join("agent.pid"))?)
}

/// Stops it; what it has done to parts ends with it.
pub(crate) async fn stop(home: &Path) {
    if let Some(mut process) = Process::from_pid_file(NAME, &home.join("agent.pid"), home.join("agent.log")) {
        process.stop(STOP_LIMIT).await;
    }
}
