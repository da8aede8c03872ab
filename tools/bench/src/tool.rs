//! Processes that measure or are measured.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{Failure, Outcome};

/// Timeout for a server to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines of output in an error.
const MAX_LINES: usize = 20;

/// The path of a program of this workspace, which is built beside this one.
pub(crate) fn workspace_binary(name: &str) -> Outcome<PathBuf> {
    let path = testbed::service::binaries()?.join(name);
    if path.is_file() { Ok(path) } else { Err(Failure(format!("{} is not built; use `just bench`", path.display()))) }
}

/// Runs a command to its end and returns what it printed.
pub(crate) async fn output(mut command: Command) -> Outcome<String> {
    let name = command.get_program().display().to_string();
    command.envs([testbed::owner_variable()?]);
    let output = smol::unblock(move || command.stdin(Stdio::null()).output()).await;
    let output = output.map_err(|error| format!("{name}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let printed = text + &String::from_utf8_lossy(&output.stderr);
    // The first lines, because each of many clients may have printed the same.
    let first: Vec<_> = printed.lines().take(MAX_LINES).collect();
    Err(Failure(format!("{name}: {}\n{}", output.status, first.join("\n"))))
}

/// A server under measurement, killed when it is dropped.
pub(crate) struct Server(Child);

impl Server {
    /// Starts it and waits until it listens.
    pub(crate) async fn start(mut command: Command, port: u16) -> Outcome<Self> {
        command.envs([testbed::owner_variable()?]);
        let server = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if begin.elapsed() > LISTEN_TIMEOUT {
                return Err(Failure(format!("{} does not listen on port {port}", command.get_program().display())));
            }
            smol::Timer::after(Duration::from_millis(10)).await;
        }
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
