use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::{guard, user::User};

/// How often a condition outside our own process is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How long a process may take to stop for a while.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// Lines of a log that an error shows.
const LAST_LINES: usize = 15;
/// Of those, lines at the beginning of what a program has said that ran to its end.
const FIRST_LINES: usize = 5;
/// Bytes at either end of a log among which they are looked for.
const SHOWN_BYTES: u64 = 64 * 1024;

/// A process that we started, or that an earlier run of ours started and left running.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    /// Ours to reap; none if an earlier run started it.
    child: Option<Child>,
    log: PathBuf,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    With(ExitStatus),
    /// Somebody else reaped it, so that its status is unknown.
    Unknown,
}

impl Ended {
    /// Whether it ended in order, with exit code 0.
    pub fn in_order(self) -> bool {
        matches!(self, Self::With(status) if status.success())
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::With(status) => write!(f, "ended: {status}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

/// A process that did not come up; shows the last lines of its log.
#[derive(Debug)]
pub struct StartError {
    what: String,
    log: Vec<String>,
}

impl StartError {
    /// An error without a log.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), log: Vec::new() }
    }

    /// An error that shows the last of what a program has said.
    pub fn of_output(what: impl Into<String>, output: &Output) -> Self {
        let both = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
        let lines: Vec<_> = both.iter().flat_map(|said| said.lines()).map(str::to_owned).collect();
        Self { what: what.into(), log: lines[lines.len().saturating_sub(LAST_LINES)..].to_vec() }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.log.iter().try_for_each(|line| write!(f, "\n  | {line}"))
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// A process about to be started.
#[derive(Debug)]
pub struct Starting {
    name: String,
    command: Command,
    log: PathBuf,
}

impl Process {
    /// Prepares a process whose output goes to the end of the file `log`.
    pub fn prepare(name: impl Into<String>, program: impl AsRef<OsStr>, log: impl Into<PathBuf>) -> Starting {
        let mut command = Command::new(program);
        // A process group of its own: an interrupt from the terminal is for us, and we stop what we started in order.
        command.stdin(Stdio::null()).process_group(0);
        Starting { name: name.into(), command, log: log.into() }
    }

    /// The process that wrote this file with [`write_pid_file`](Self::write_pid_file), if it is still alive.
    pub fn from_pid_file(name: impl Into<String>, path: &Path, log: impl Into<PathBuf>) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid = Pid::from_raw(pid.parse().ok()?)?;
        // A number may have been given to another process since.
        (start_time(pid)? == started).then(|| Self { name: name.into(), pid, child: None, log: log.into() })
    }

    /// Lets a later run find the process. For one that has ended already there is nothing to find: whoever waits for it learns
    /// that, and shows its log.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_pid_file(&self, path: &Path) -> io::Result<()> {
        match start_time(self.pid) {
            Some(started) => fs::write(path, format!("{} {started}\n", self.pid)),
            None => {
                // That of an earlier one, if there is any.
                let _ = fs::remove_file(path);
                Ok(())
            }
        }
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// When it was started, as the kernel counts it; none if it has ended.
    pub(crate) fn started(&self) -> Option<String> {
        start_time(self.pid)
    }

    /// Bytes of memory that it has in use (resident); 0 if it has ended.
    pub fn memory(&self) -> u64 {
        self.memory_of("VmRSS:")
    }

    /// The most memory that it ever had in use, in bytes (resident); 0 if it has ended.
    pub fn most_memory(&self) -> u64 {
        self.memory_of("VmHWM:")
    }

    fn memory_of(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() * 1024
    }

    /// Descriptors that it has open; 0 if it has ended.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count)
    }

    /// The file with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal. A process that has ended gets none; one that is to stop has stopped when this returns.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // It may end in this very moment.
            let _ = kill_process(self.pid, signal);
        }
        if signal == Signal::STOP {
            // A thread that waits for the disk stops after that, and may answer somebody in between.
            let end = Instant::now() + STOP_LIMIT;
            while self.ended().is_none() && !has_stopped(self.pid) && Instant::now() < end {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Sends a signal to it and to all that descend from it, such as PostgreSQL's sessions.
    pub fn signal_all(&mut self, signal: Signal) {
        for pid in descendants(self.pid) {
            // It may have ended since it was found.
            let _ = kill_process(pid, signal);
        }
        self.signal(signal);
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<Ended> {
        match &mut self.child {
            Some(child) => child.try_wait().map_or(Some(Ended::Unknown), |status| status.map(Ended::With)),
            None => start_time(self.pid).is_none().then_some(Ended::Unknown),
        }
    }

    /// Waits for its end; none if it has not come after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Option<Ended> {
        let started = Instant::now();
        loop {
            if let ended @ Some(_) = self.ended() {
                return ended;
            }
            if started.elapsed() > limit {
                return None;
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    /// Kills it, as `kill -9` does, and waits until it is gone. A child of it that is frozen goes with it: PostgreSQL's
    /// sessions end by themselves when their server has died, but only once they run.
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
                // It may end in this very moment.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Asks it to end (SIGTERM) and kills it after `limit`. Tells how it ended.
    pub async fn stop(&mut self, limit: Duration) -> Ended {
        self.signal(Signal::TERM);
        if let Some(ended) = self.wait(limit).await {
            return ended;
        }
        self.kill().await;
        self.ended().unwrap_or(Ended::Unknown)
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// If the process ends, or is not ready after `limit`; the error shows the end of its log.
    pub async fn until<F>(&mut self, limit: Duration, mut ready: impl FnMut() -> F) -> Result<(), StartError>
    where
        F: Future<Output = bool>,
    {
        let started = Instant::now();
        while !ready().await {
            let failure = match self.ended() {
                Some(ended) => format!("{} {ended}", self.name),
                None if started.elapsed() > limit => format!("{} is not ready after {limit:?}", self.name),
                None => {
                    smol::Timer::after(POLL_INTERVAL).await;
                    continue;
                }
            };
            return Err(StartError { what: failure, log: last_lines(&self.log) });
        }
        Ok(())
    }
}

impl Starting {
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

    /// Gives it no variable of ours but those added after this call.
    #[must_use]
    pub fn clean_environment(mut self) -> Self {
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

    /// Starts it. It ends when our program does, in whatever way, unless that is to [leave it running][leave_running].
    ///
    /// # Errors
    /// If the program cannot be started or the log cannot be written.
    ///
    /// [leave_running]: crate::leave_running
    pub fn start(mut self) -> Result<Process, StartError> {
        if !guard::leaves_running() {
            self.command.envs([guard::mark()?]);
        }
        self.spawn()
    }

    fn spawn(mut self) -> Result<Process, StartError> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        self.command.stdout(log.try_clone()?).stderr(log);
        let child = self.command.spawn().map_err(|error| {
            StartError::new(format!("cannot start {} ({}): {error}", self.name, self.command.get_program().display()))
        })?;
        let pid = Pid::from_child(&child);
        Ok(Process { name: self.name, pid, child: Some(child), log: self.log })
    }

    /// Runs it to its end. It never outlives our program.
    ///
    /// # Errors
    /// If it does not end in order; the error shows the end of its log.
    pub async fn run(mut self, limit: Duration) -> Result<(), StartError> {
        // Others before it may have written to the same file.
        let before = fs::metadata(&self.log).map_or(0, |log| log.len());
        self.command.envs([guard::mark()?]);
        let mut running = Running(self.spawn()?);
        let process = &mut running.0;
        match process.wait(limit).await {
            Some(ended) if ended.in_order() => Ok(()),
            ended => {
                process.signal_all(Signal::KILL);
                process.wait(STOP_LIMIT).await;
                let how = ended.map_or("did not end in time".to_owned(), |ended| ended.to_string());
                Err(StartError {
                    what: format!("{} {how}", process.name),
                    log: first_and_last_lines(&process.log, before),
                })
            }
        }
    }
}

/// A process whose end somebody waits for: it ends if they no longer do.
struct Running(Process);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.ended().is_none() {
            self.0.signal_all(Signal::KILL);
        }
    }
}

/// Whether every thread of a process has stopped.
fn has_stopped(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default()).all(|stat| {
        // One that has ended meanwhile is none any more.
        stat.is_empty() || stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
    })
}

/// The processes below `root`, children before their own.
fn descendants(root: Pid) -> Vec<Pid> {
    let mut pairs = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let parent = pid.and_then(|pid| stat_field(pid, 1)).and_then(|ppid| ppid.parse().ok()).and_then(Pid::from_raw);
        pairs.extend(pid.zip(parent));
    }
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let current = found[next];
        found.extend(pairs.iter().filter(|(_, parent)| *parent == current).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// When a process started, as the kernel counts it; together with its id it names a process for good.
fn start_time(pid: Pid) -> Option<String> {
    let alive = stat_field(pid, 0)? != "Z";
    alive.then(|| stat_field(pid, 19)).flatten()
}

/// A field of `/proc/<pid>/stat`, counted from 0 after the program's name, which stands in parentheses and may hold
/// spaces: 0 is the state, 1 the parent, 19 the time of the start.
fn stat_field(pid: Pid, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(number).map(str::to_owned)
}

/// The last lines of a file; bytes that are no text are shown as such.
fn last_lines(path: &Path) -> Vec<String> {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(SHOWN_BYTES)))?;
        text(file)
    };
    let lines: Vec<_> = read().unwrap_or_default();
    lines[lines.len().saturating_sub(LAST_LINES)..].to_vec()
}

/// The first and the last lines of what a program has written to a file after so many bytes: some say first what is wrong,
/// and then where in themselves.
fn first_and_last_lines(path: &Path, after: u64) -> Vec<String> {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(after))?;
        text(file)
    };
    let first: Vec<_> = read().unwrap_or_default();
    if first.len() <= LAST_LINES {
        return first;
    }
    let last = last_lines(path);
    let last = &last[last.len().saturating_sub(LAST_LINES - FIRST_LINES)..];
    first[..FIRST_LINES].iter().cloned().chain(["...".to_owned()]).chain(last.iter().cloned()).collect()
}

fn text(file: File) -> io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    file.take(SHOWN_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn a_failure_shows_what_it_said_and_nothing_from_before() {
        let scratch = Scratch::new().unwrap();
        let log = scratch.path().join("log");
        let run = |script: &str| {
            let process = Process::prepare("sh", "sh", &log).args(["-c", script]);
            smol::block_on(process.run(Duration::from_secs(20)))
        };
        run("echo before").unwrap();
        let failure = run("echo now; exit 3").unwrap_err().to_string();
        assert_eq!(failure, "sh ended: exit status: 3\n  | now");
    }

    #[test]
    fn a_process_is_found_again_by_its_file_and_not_by_its_number_alone() {
        let scratch = Scratch::new().unwrap();
        let (log, file) = (scratch.path().join("log"), scratch.path().join("pid"));
        let mut process = Process::prepare("sleep", "sleep", &log).args(["60"]).start().unwrap();
        process.write_pid_file(&file).unwrap();
        let mut found = Process::from_pid_file("sleep", &file, &log).unwrap();
        assert_eq!(found.pid(), process.pid());
        assert_eq!(found.ended(), None);
        smol::block_on(process.kill());
        assert!(Process::from_pid_file("sleep", &file, &log).is_none());
        process.write_pid_file(&file).unwrap();
        assert!(!file.exists(), "it ended before its file was written");

        fs::write(&file, format!("{} 1\n", std::process::id())).unwrap();
        assert!(Process::from_pid_file("us", &file, &log).is_none());
    }

    #[test]
    fn a_process_that_is_to_stop_has_stopped() {
        let scratch = Scratch::new().unwrap();
        let busy = "while :; do :; done";
        let mut process =
            Process::prepare("busy", "sh", scratch.path().join("log")).args(["-c", busy]).start().unwrap();
        for _ in 0..20 {
            process.signal(Signal::STOP);
            assert!(has_stopped(process.pid));
            process.signal(Signal::CONT);
        }
        smol::block_on(process.kill());
    }

    #[test]
    fn a_program_that_fails_is_told_with_its_first_and_its_last_words() {
        let scratch = Scratch::new().unwrap();
        let log = scratch.path().join("log");
        fs::write(&log, "of an earlier run\n").unwrap();
        let script = "echo the reason; seq 1000; echo the end; exit 1";
        let run = Process::prepare("script", "sh", &log).args(["-c", script]).run(Duration::from_secs(20));
        let error = smol::block_on(run).unwrap_err().to_string();
        assert!(error.contains("| the reason\n  | 1\n") && error.ends_with("| 1000\n  | the end"), "{error}");
        assert!(error.lines().count() < 20 && !error.contains("earlier"), "{error}");
    }

    #[test]
    fn an_early_end_shows_the_log() {
        let scratch = Scratch::new().unwrap();
        // Not all of it is text: a tool may speak in another encoding.
        let script = r"printf 'b\374cher\nthe port is taken\n'; exit 3";
        let mut process =
            Process::prepare("script", "sh", scratch.path().join("log")).args(["-c", script]).start().unwrap();
        let error = smol::block_on(process.until(Duration::from_secs(5), || async { false })).unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert!(error.to_string().contains("| the port is taken"), "{error}");
    }
}
