//! The process of the agent: `up` starts it, `down` stops it.

use std::{env, fs, path::Path, time::Duration};

use anyhow::Result;
use testbed::Process;

use crate::{home, private_file, settings::Settings};

/// The variable that passes the token to the console and to the agent.
pub(crate) const TOKEN: &str = "CONSOLE_AGENT_TOKEN";
/// The agent's subcommand, and the name of its pid file and its log in the data directory.
const NAME: &str = "agent";
/// The file with the token, in the same directory.
const TOKEN_FILE: &str = "agent-token";
/// Time for the agent to end the current fault.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The token of this system, generated at the first start.
pub(crate) fn token() -> Result<String> {
    let file = home::directory()?.join(TOKEN_FILE);
    if let Ok(token) = fs::read_to_string(&file) {
        return Ok(token);
    }
    let token: String = (0..4).map(|_| format!("{:016x}", random())).collect();
    private_file::write(&file, &token)?;
    Ok(token)
}

/// Random bits from the operating system: the standard library seeds its hash maps with them.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

/// Restarts the agent, so that it has the current settings.
pub(crate) async fn start(settings: &Settings) -> Result<()> {
    let home = home::directory()?;
    stop(&home).await;
    let process = Process::builder(NAME, env::current_exe()?, home.join("agent.log"))
        .args([NAME])
        .envs([(TOKEN, token()?), ("CONSOLE_PORT", settings.console_port.to_string())])
        .start()?;
    Ok(process.write_pid_file(&home.join("agent.pid"))?)
}

/// Stops the agent, which first ends the current fault.
pub(crate) async fn stop(home: &Path) {
    if let Some(mut process) = Process::from_pid_file(NAME, &home.join("agent.pid"), home.join("agent.log")) {
        process.stop(STOP_LIMIT).await;
    }
}
