//! Prints the end of the logs, ordered by time; with `-f`, also new lines.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _, stdout},
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use serde_json::Value as Json;

/// Lines that are printed of each log.
const MAX_LINES: usize = 50;
/// Bytes that are read at the end of a log to find those lines.
const MAX_BYTES: u64 = 64 * 1024;
/// How often followed logs are read.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The log of a component.
pub(crate) trait Log {
    /// The name of the component.
    fn component(&self) -> &str;
    /// The last lines, or all.
    fn read_end(&mut self, all: bool) -> Result<Vec<String>>;
    /// The lines since the last call.
    fn new_lines(&mut self) -> Result<Vec<String>>;
}

/// Prints the logs of the components in `arguments`, else of our services; `-f` follows them, `--all` prints them whole.
pub(crate) fn run(arguments: &[&str], mut logs: Vec<Box<dyn Log>>) -> Result<()> {
    let (options, requested): (Vec<&str>, Vec<&str>) =
        arguments.iter().copied().partition(|word| word.starts_with('-'));
    if let Some(unknown) = options.iter().find(|option| !["-f", "--all"].contains(option)) {
        return Err(anyhow!("logs takes -f, --all and names of components, not {unknown}."));
    }
    if let Some(unknown) = requested.iter().find(|name| !logs.iter().any(|log| log.component() == **name)) {
        let mut names: Vec<_> = logs.iter().map(|log| log.component()).collect();
        names.dedup();
        return Err(anyhow!("There is no component {unknown:?}; there are {}.", names.join(", ")));
    }
    // Without names, the lines of our services alone: the databases and the broker would hide them.
    logs.retain(|log| {
        if requested.is_empty() { log.component().contains("-service") } else { requested.contains(&log.component()) }
    });
    let mut lines = Vec::new();
    for log in &mut logs {
        let component = log.component().to_owned();
        lines.extend(log.read_end(options.contains(&"--all"))?.into_iter().map(|line| (component.clone(), line)));
    }
    // Only lines of our services have a time; the sort is stable, so others stay where they are.
    lines.sort_by_cached_key(|(_, line)| time_of(line));
    for (component, line) in lines {
        print_line(&component, &line);
    }
    while options.contains(&"-f") {
        for log in &mut logs {
            for line in log.new_lines()? {
                print_line(log.component(), &line);
            }
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// The log file of a process.
pub(crate) struct FileLog {
    component: &'static str,
    path: PathBuf,
    read: u64,
}

impl FileLog {
    pub(crate) fn new(component: &'static str, path: PathBuf) -> Self {
        Self { component, path, read: 0 }
    }
}

impl Log for FileLog {
    fn component(&self) -> &str {
        self.component
    }

    fn read_end(&mut self, all: bool) -> Result<Vec<String>> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(Vec::new()) };
        self.read = fs::metadata(&self.path)?.len();
        let begin = if all { 0 } else { self.read.saturating_sub(MAX_BYTES) };
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(self.read - begin).read_to_end(&mut bytes)?;
        // A log may contain bytes that are not UTF-8.
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        // The first line may be incomplete.
        let cut = usize::from(begin > 0 && !lines.is_empty());
        let skip = if all { 0 } else { lines.len().saturating_sub(MAX_LINES).max(cut) };
        Ok(lines.into_iter().skip(skip).collect())
    }

    fn new_lines(&mut self) -> Result<Vec<String>> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(Vec::new()) };
        if file.metadata().is_ok_and(|meta| meta.len() < self.read) {
            // The file was rotated.
            self.read = 0;
        }
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(self.read)).is_err() || file.read_to_end(&mut bytes).is_err() {
            return Ok(Vec::new());
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        Ok(String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect())
    }
}

/// The log of a container, from `docker logs`.
pub(crate) struct ContainerLog {
    service: String,
    id: String,
    /// The engine's timestamp of the last line that was printed.
    last: String,
    following: Option<Receiver<String>>,
}

impl ContainerLog {
    pub(crate) fn new(service: String, id: String) -> Self {
        Self { service, id, last: String::new(), following: None }
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        // A shell merges stdout and stderr of the container, so that the order of lines stays. It is killed with us.
        let mut command = testbed::command("sh")?;
        let script = r#"exec docker logs "$@" 2>&1"#;
        command.args(["-c", script, "logs", "--timestamps"]).args(arguments).arg(&self.id).stdin(Stdio::null());
        Ok(command)
    }

    /// Removes the engine's timestamp from a line; none if the line was printed before.
    fn new_line(&mut self, line: &str) -> Option<String> {
        let (time, text) = line.split_once(' ').unwrap_or((line, ""));
        (time > self.last.as_str()).then(|| {
            self.last = time.to_owned();
            text.to_owned()
        })
    }

    fn follow(&self) -> Result<Receiver<String>> {
        let since = if self.last.is_empty() { "0" } else { &self.last };
        let mut child = self.command(&["--follow", "--since", since])?.stdout(Stdio::piped()).spawn()?;
        let (sender, receiver) = channel();
        let output = child.stdout.take();
        thread::spawn(move || {
            for line in output.into_iter().flat_map(|output| BufReader::new(output).split(b'\n')).map_while(Result::ok)
            {
                if sender.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                    break;
                }
            }
            // `docker logs` ends with the container, or is killed with us.
            let _ = child.wait();
        });
        Ok(receiver)
    }
}

impl Log for ContainerLog {
    fn component(&self) -> &str {
        &self.service
    }

    fn read_end(&mut self, all: bool) -> Result<Vec<String>> {
        let lines = MAX_LINES.to_string();
        let output = self.command(&["--tail", if all { "all" } else { &lines }])?.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(anyhow::Error::msg(text));
        }
        Ok(text.lines().filter_map(|line| self.new_line(line)).collect())
    }

    fn new_lines(&mut self) -> Result<Vec<String>> {
        let following = match self.following.take() {
            Some(following) => following,
            None => self.follow()?,
        };
        let mut lines = Vec::new();
        loop {
            match following.try_recv() {
                Ok(line) => lines.extend(self.new_line(&line)),
                Err(TryRecvError::Empty) => {
                    self.following = Some(following);
                    return Ok(lines);
                }
                // The container has ended, and may start again.
                Err(TryRecvError::Disconnected) => return Ok(lines),
            }
        }
    }
}

fn time_of(line: &str) -> String {
    let json: Option<Json> = serde_json::from_str(line).ok();
    json.and_then(|json| json["time"].as_str().map(str::to_owned)).unwrap_or_default()
}

fn print_line(component: &str, line: &str) {
    let text = match serde_json::from_str::<Json>(line) {
        Ok(Json::Object(mut fields)) if stdout().is_terminal() => {
            let mut take = |name: &str| {
                fields.remove(name).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
            };
            let (time, level, message) = (take("time"), take("level"), take("message"));
            let (_, _) = (take("service"), take("target"));
            let rest: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{time} {level:5} {component:18} {message}  {}", rest.join(" "))
        }
        Ok(_) => line.to_owned(),
        Err(_) => format!("{component}: {line}"),
    };
    // A closed pipe (`just logs | head`).
    if writeln!(stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_not_all_utf_8_is_printed_whole() {
        let scratch = testbed::Scratch::new().unwrap();
        let path = scratch.path().join("log");
        fs::write(&path, b"one\nb\xfccher\nthree\n").unwrap();
        let mut log = FileLog::new("part", path.clone());
        assert_eq!(log.read_end(false).unwrap(), ["one", "b\u{fffd}cher", "three"]);
        fs::write(&path, b"one\nb\xfccher\nthree\nf\xfcnf\nsi").unwrap();
        assert_eq!(log.new_lines().unwrap(), ["f\u{fffd}nf"], "an incomplete line is printed later");
    }

    #[test]
    fn a_line_of_a_container_is_printed_once() {
        let mut log = ContainerLog::new("kafka".to_owned(), "0123".to_owned());
        assert_eq!(log.new_line("2026-11-22T17:00:00.000000001Z ready now"), Some("ready now".to_owned()));
        assert_eq!(log.new_line("2026-11-22T17:00:00.000000001Z ready now"), None);
        assert_eq!(log.new_line("2026-11-22T17:00:00.000000002Z "), Some(String::new()));
    }
}
