//! One child process: its log, signals to it, its exit.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::{Error, guard, user::User};

mod log;
mod output;
mod procfs;

use log::{first_and_last_lines, last_lines};
pub use output::output;
pub use procfs::resident_memory;
use procfs::{descendants, has_stopped, memory_field, start_time};

/// How often a condition of another process is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Time for a process to stop after SIGSTOP.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// A process that we started, or that an earlier run started and left running.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    /// None if an earlier run started it: then it is not our child, and another process reaps it.
    child: Option<Child>,
    log: PathBuf,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(ExitStatus),
    /// Another process reaped it, so its status is unknown.
    Unknown,
}

impl Exit {
    /// Whether its exit code was 0.
    pub fn success(self) -> bool {
        matches!(self, Self::Status(status) if status.success())
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "ended: {status}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

/// Builds a process.
#[derive(Debug)]
pub struct ProcessBuilder {
    name: String,
    command: Command,
    log: PathBuf,
}

impl Process {
    /// Prepares a process whose output goes to the end of the file `log`.
    pub fn builder(name: impl Into<String>, program: impl AsRef<OsStr>, log: impl Into<PathBuf>) -> ProcessBuilder {
        let mut command = Command::new(program);
        // Its own process group: Ctrl-C in the terminal then reaches us alone, and we stop our children one by one.
        command.stdin(Stdio::null()).process_group(0);
        ProcessBuilder { name: name.into(), command, log: log.into() }
    }

    /// The process that wrote this file with [`write_pid_file`](Self::write_pid_file), if it is still alive.
    pub fn from_pid_file(name: impl Into<String>, path: &Path, log: impl Into<PathBuf>) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid = Pid::from_raw(pid.parse().ok()?)?;
        // The kernel may have given the pid to another process since.
        (start_time(pid)? == started).then(|| Self { name: name.into(), pid, child: None, log: log.into() })
    }

    /// Writes a file by which a later run finds the process. If the process has ended already, an older file is removed.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_pid_file(&self, path: &Path) -> io::Result<()> {
        match start_time(self.pid) {
            Some(started) => fs::write(path, format!("{} {started}\n", self.pid)),
            None => {
                // There may be none.
                let _ = fs::remove_file(path);
                Ok(())
            }
        }
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// When it was started, in clock ticks since boot; none if it has ended.
    pub(crate) fn started(&self) -> Option<String> {
        start_time(self.pid)
    }

    /// Its resident set size in bytes; 0 if it has ended.
    pub fn memory(&self) -> u64 {
        resident_memory(self.pid()).unwrap_or_default()
    }

    /// Its peak resident set size in bytes; 0 if it has ended.
    pub fn peak_memory(&self) -> u64 {
        memory_field(self.pid(), "VmHWM:").unwrap_or_default()
    }

    /// How many file descriptors it has open; 0 if it has ended.
    pub fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count)
    }

    /// The file with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal, unless the process has ended. After SIGSTOP, waits until every thread has stopped.
    pub fn signal(&mut self, signal: Signal) {
        if self.try_wait().is_none() {
            // The process may end between the check and the signal.
            let _ = kill_process(self.pid, signal);
        }
        if signal == Signal::STOP {
            // A thread that waits for the disk stops only when the disk has answered, and may send a response before.
            let end = Instant::now() + STOP_TIMEOUT;
            while self.try_wait().is_none() && !has_stopped(self.pid) && Instant::now() < end {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Sends a signal to the process and its descendants, such as PostgreSQL's backends.
    pub fn signal_all(&mut self, signal: Signal) {
        for pid in descendants(self.pid) {
            // It may have ended since it was found.
            let _ = kill_process(pid, signal);
        }
        self.signal(signal);
    }

    /// Its exit, if it has ended.
    pub fn try_wait(&mut self) -> Option<Exit> {
        match &mut self.child {
            Some(child) => child.try_wait().map_or(Some(Exit::Unknown), |status| status.map(Exit::Status)),
            None => start_time(self.pid).is_none().then_some(Exit::Unknown),
        }
    }

    /// Waits until it ends; none if it has not ended after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Option<Exit> {
        let started = Instant::now();
        loop {
            if let exit @ Some(_) = self.try_wait() {
                return exit;
            }
            if started.elapsed() > limit {
                return None;
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    /// Sends SIGKILL and waits until the process has ended. Its stopped children are killed too: PostgreSQL's backends exit
    /// by themselves when the postmaster has died, but not while they are stopped.
    pub async fn kill(&mut self) {
        let frozen: Vec<_> = descendants(self.pid)
            .into_iter()
            .filter(|pid| has_stopped(*pid))
            .filter_map(|pid| Some((pid, start_time(pid)?)))
            .collect();
        self.signal(Signal::KILL);
        self.wait(Duration::from_secs(10)).await;
        for (pid, started) in frozen {
            if start_time(pid).is_some_and(|now| now == started) {
                // The process may end between the check and the signal.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Sends SIGTERM, and SIGKILL after `limit`. Returns how the process ended.
    pub async fn stop(&mut self, limit: Duration) -> Exit {
        self.signal(Signal::TERM);
        if let Some(exit) = self.wait(limit).await {
            return exit;
        }
        self.kill().await;
        self.try_wait().unwrap_or(Exit::Unknown)
    }

    /// Waits until `ready` is true.
    ///
    /// # Errors
    /// If the process ends, or is not ready after `limit`; the error shows the end of its log.
    pub async fn until<F>(&mut self, limit: Duration, mut ready: impl FnMut() -> F) -> Result<(), Error>
    where
        F: Future<Output = bool>,
    {
        let started = Instant::now();
        while !ready().await {
            let failure = match self.try_wait() {
                Some(exit) => format!("{} {exit}", self.name),
                None if started.elapsed() > limit => format!("{} is not ready after {limit:?}", self.name),
                None => {
                    smol::Timer::after(POLL_INTERVAL).await;
                    continue;
                }
            };
            return Err(Error::with_log(failure, last_lines(&self.log)));
        }
        Ok(())
    }
}

impl ProcessBuilder {
    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Adds environment variables.
    #[must_use]
    pub fn envs(mut self, variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) -> Self {
        self.command.envs(variables);
        self
    }

    /// Removes a variable of our environment.
    #[must_use]
    pub fn without_env(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Clears its environment; only variables that are added afterwards are set.
    #[must_use]
    pub fn clear_environment(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Sets its working directory.
    #[must_use]
    pub fn directory(mut self, path: impl AsRef<Path>) -> Self {
        self.command.current_dir(path);
        self
    }

    #[must_use]
    pub(crate) fn user(mut self, user: Option<User>) -> Self {
        if let Some(User { uid, gid }) = user {
            self.command.uid(uid).gid(gid);
        }
        self
    }

    /// Starts it. It is killed when our program ends, however that ends, unless [`leave_running`] was called.
    ///
    /// # Errors
    /// If the program cannot be started or the log cannot be written.
    ///
    /// [`leave_running`]: crate::leave_running
    pub fn start(mut self) -> Result<Process, Error> {
        if !guard::leaves_running() {
            self.command.envs([guard::owner_variable()?]);
        }
        self.spawn()
    }

    fn spawn(mut self) -> Result<Process, Error> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        self.command.stdout(log.try_clone()?).stderr(log);
        let child = self.command.spawn().map_err(|error| {
            Error::new(format!("cannot start {} ({}): {error}", self.name, self.command.get_program().display()))
        })?;
        let pid = Pid::from_child(&child);
        Ok(Process { name: self.name, pid, child: Some(child), log: self.log })
    }

    /// Runs it and waits until it ends. It is killed if our program ends before.
    ///
    /// # Errors
    /// If it does not end after `limit`, or not with exit code 0; the error shows its output.
    pub async fn run(mut self, limit: Duration) -> Result<(), Error> {
        // Earlier processes may have written to the same file.
        let before = fs::metadata(&self.log).map_or(0, |log| log.len());
        self.command.envs([guard::owner_variable()?]);
        let mut running = Running(self.spawn()?);
        let process = &mut running.0;
        match process.wait(limit).await {
            Some(exit) if exit.success() => Ok(()),
            exit => {
                process.signal_all(Signal::KILL);
                process.wait(STOP_TIMEOUT).await;
                let end = exit.map_or("did not end in time".to_owned(), |exit| exit.to_string());
                Err(Error::with_log(format!("{} {end}", process.name), first_and_last_lines(&process.log, before)))
            }
        }
    }
}

/// Kills the process if [`ProcessBuilder::run`] is cancelled.
struct Running(Process);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().is_none() {
            self.0.signal_all(Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn an_error_shows_the_output_of_this_run_alone() {
        let scratch = Scratch::new().unwrap();
        let log = scratch.path().join("log");
        let run = |script: &str| {
            let process = Process::builder("sh", "sh", &log).args(["-c", script]);
            smol::block_on(process.run(Duration::from_secs(20)))
        };
        run("echo before").unwrap();
        let failure = run("echo now; exit 3").unwrap_err().to_string();
        assert_eq!(failure, "sh ended: exit status: 3\n  | now");
    }

    #[test]
    fn a_process_is_found_by_pid_and_start_time() {
        let scratch = Scratch::new().unwrap();
        let (log, file) = (scratch.path().join("log"), scratch.path().join("pid"));
        let mut process = Process::builder("sleep", "sleep", &log).args(["60"]).start().unwrap();
        process.write_pid_file(&file).unwrap();
        let mut found = Process::from_pid_file("sleep", &file, &log).unwrap();
        assert_eq!(found.pid(), process.pid());
        assert_eq!(found.try_wait(), None);
        smol::block_on(process.kill());
        assert!(Process::from_pid_file("sleep", &file, &log).is_none());
        process.write_pid_file(&file).unwrap();
        assert!(!file.exists(), "it ended before its file was written");

        fs::write(&file, format!("{} 1\n", std::process::id())).unwrap();
        assert!(Process::from_pid_file("us", &file, &log).is_none());
    }

    #[test]
    fn every_thread_has_stopped_after_sigstop() {
        let scratch = Scratch::new().unwrap();
        let busy = "while :; do :; done";
        let mut process =
            Process::builder("busy", "sh", scratch.path().join("log")).args(["-c", busy]).start().unwrap();
        for _ in 0..20 {
            process.signal(Signal::STOP);
            assert!(has_stopped(process.pid));
            process.signal(Signal::CONT);
        }
        smol::block_on(process.kill());
    }

    #[test]
    fn an_error_shows_the_first_and_the_last_lines_of_the_output() {
        let scratch = Scratch::new().unwrap();
        let log = scratch.path().join("log");
        fs::write(&log, "of an earlier run\n").unwrap();
        let script = "echo the reason; seq 1000; echo the end; exit 1";
        let run = Process::builder("script", "sh", &log).args(["-c", script]).run(Duration::from_secs(20));
        let error = smol::block_on(run).unwrap_err().to_string();
        assert!(error.contains("| the reason\n  | 1\n") && error.ends_with("| 1000\n  | the end"), "{error}");
        assert!(error.lines().count() < 20 && !error.contains("earlier"), "{error}");
    }

    #[test]
    fn a_process_that_ends_while_it_starts_is_an_error_with_its_log() {
        let scratch = Scratch::new().unwrap();
        // Not all of it is UTF-8: a tool may use another encoding.
        let script = r"printf 'b\374cher\nthe port is taken\n'; exit 3";
        let mut process =
            Process::builder("script", "sh", scratch.path().join("log")).args(["-c", script]).start().unwrap();
        let error = smol::block_on(process.until(Duration::from_secs(5), || async { false })).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert!(error.to_string().contains("| the port is taken"), "{error}");
    }
}
