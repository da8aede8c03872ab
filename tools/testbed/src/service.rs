//! Our services as processes: the real binaries, started with an environment.

use std::{
    env,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    Error, Process, Scratch,
    http::{Access, Client},
    ports,
    process::Exit,
};

/// Time until a service is ready once its database and broker are.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a service to stop: a little more than its own limits for draining.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Where the services' binaries are: `SERVICE_BINARIES`, else beside our own program.
///
/// # Errors
/// If the path of our own program is unknown.
pub fn binaries() -> io::Result<PathBuf> {
    if let Some(path) = env::var_os("SERVICE_BINARIES") {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let directory = own.parent().unwrap_or(Path::new("."));
    // Test programs are one folder deeper.
    Ok(if directory.ends_with("deps") {
        directory.parent().unwrap_or(directory).to_owned()
    } else {
        directory.to_owned()
    })
}

/// A setting that a service knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variables that set it; the first that is set counts.
    pub names: Vec<String>,
    /// Its default.
    pub default: Option<String>,
}

/// The settings that a service knows: all that its `--help` lists.
///
/// # Errors
/// If the binary is missing, or its `--help` lists none.
pub fn settings(name: &str) -> Result<Vec<Setting>, Error> {
    let binary = binaries()?.join(name);
    let output = Command::new(&binary).arg("--help").env_clear().output();
    let output = output.map_err(|error| Error::new(format!("{}: {error}", binary.display())))?;
    let settings = parse_settings(&String::from_utf8_lossy(&output.stdout));
    if settings.is_empty() {
        return Err(Error::of_output(format!("{name} --help lists no settings ({})", output.status), &output));
    }
    Ok(settings)
}

/// Parses the `--help` of a service: a line with the names of a setting, and a line below it that may have the default.
pub fn parse_settings(help: &str) -> Vec<Setting> {
    let lines: Vec<_> = help.lines().collect();
    let setting = |pair: &[&str]| {
        let names: Vec<_> = pair[0].trim().split(", ").map(str::to_owned).collect();
        let is_name = |name: &String| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        };
        let is_setting = pair[0].starts_with("  ") && !pair[0].starts_with("   ") && names.iter().all(is_name);
        let default = pair[1].rsplit_once("(default ").map(|(_, rest)| rest.trim_end_matches(')').to_owned());
        is_setting.then_some(Setting { names, default })
    };
    lines.windows(2).filter_map(setting).collect()
}

/// How a service is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The name of the binary.
    pub name: &'static str,
    /// Its HTTP port.
    pub port: u16,
    /// Its environment, apart from `PATH` and the HTTP port.
    pub environment: Vec<(String, String)>,
    /// Where its log and its pid file go.
    pub directory: PathBuf,
    /// The name of its log and its pid file: the binary's, unless there are several of it.
    pub label: String,
    /// How it is reached if it speaks TLS.
    pub access: Option<Access>,
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    launch: Launch,
    process: Process,
}

impl Launch {
    /// The launch of a binary with these variables, on a free port, with its files in `directory`.
    pub fn new<N, V>(name: &'static str, directory: &Path, environment: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let directory = directory.to_owned();
        Self { name, port: ports::free(), environment, directory, label: name.to_owned(), access: None }
    }

    /// Starts it, and has it killed at the latest when `scratch` is dropped. It may not be ready yet.
    ///
    /// # Errors
    /// If the binary is missing or cannot be started.
    pub fn start_guarded(self, scratch: &Scratch) -> Result<Service, Error> {
        let mut service = self.start()?;
        scratch.guard(service.process())?;
        Ok(service)
    }

    /// Starts it. It may not be ready yet.
    ///
    /// # Errors
    /// If the binary is missing or cannot be started.
    pub fn start(self) -> Result<Service, Error> {
        self.start_with_wrapper(&[])
    }

    /// Starts it with a wrapper, such as `unshare`: a command that gets the binary's path as its last argument and ends with
    /// an `exec` of it.
    ///
    /// # Errors
    /// If the binary is missing or the wrapper cannot be started.
    pub fn start_with_wrapper(self, wrapper: &[&str]) -> Result<Service, Error> {
        let binary = binaries()?.join(self.name);
        if !binary.is_file() {
            return Err(Error::new(format!("{} is not built: {} is missing", self.name, binary.display())));
        }
        let words: Vec<&OsStr> = wrapper.iter().map(OsStr::new).chain([binary.as_os_str()]).collect();
        let process = Process::builder(&self.label, words[0], self.log())
            .args(&words[1..])
            .clear_environment()
            .envs(env::var("PATH").map(|path| ("PATH", path)))
            .envs([("SERVER_PORT", self.port.to_string())])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .directory(&self.directory)
            .start()?;
        process.write_pid_file(&self.pid_file())?;
        Ok(Service { launch: self, process })
    }

    /// The service that an earlier run started with this label, if it still runs.
    pub fn running(self) -> Option<Service> {
        let process = Process::from_pid_file(&self.label, &self.pid_file(), self.log())?;
        Some(Service { launch: self, process })
    }

    /// The file with its output.
    pub fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.label))
    }

    fn pid_file(&self) -> PathBuf {
        self.directory.join(format!("{}.pid", self.label))
    }
}

impl Service {
    /// How it was started.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A variable of its environment.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.launch.environment.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.as_str())
    }

    /// Its HTTP address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.launch.port)
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let client = Client::new(self.address());
        self.launch.access.as_ref().map_or(client.clone(), |access| client.with_access(access))
    }

    /// Whether its readiness probe succeeds.
    pub async fn is_ready(&self) -> bool {
        let client = self.client().with_timeout(Duration::from_secs(2));
        client.get("/actuator/health/readiness").await.is_ok_and(|response| response.status == 200)
    }

    /// Waits until its readiness probe succeeds.
    ///
    /// # Errors
    /// If it ends, or is not ready in time; the error shows the end of its log.
    pub async fn until_ready(&mut self) -> Result<(), Error> {
        let client = self.client().with_timeout(Duration::from_secs(2));
        let ready =
            || async { client.get("/actuator/health/readiness").await.is_ok_and(|response| response.status == 200) };
        self.process.until(READY_TIMEOUT, ready).await
    }

    /// Sends SIGTERM, and SIGKILL after [`STOP_TIMEOUT`].
    pub async fn stop(&mut self) -> Exit {
        self.process.stop(STOP_TIMEOUT).await
    }

    /// Starts it again on the same port after it has ended.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart(&mut self) -> Result<(), Error> {
        *self = self.launch.clone().start()?;
        Ok(())
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.launch.log()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_defaults_are_parsed() {
        let help = "a 1: b\n\nUsage: a [--help]\n  (nothing)   runs\n\nEnvironment:\n  PORT\n      port: a number (default 4000)\n\
                    \u{20} URL, OTHER_URL\n      where: text (required, e.g. x)\n";
        let settings = parse_settings(help);
        let names: Vec<_> = settings.iter().map(|setting| setting.names.join(" ")).collect();
        assert_eq!(names, ["PORT", "URL OTHER_URL"]);
        assert_eq!((settings[0].default.as_deref(), &settings[1].default), (Some("4000"), &None));
    }
}
