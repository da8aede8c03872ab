//! The end of the logs, in the order of time; with `-f`, what is added to them.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _, stdout},
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::Duration,
};

use serde_json::Value as Json;

use crate::{Failure, Outcome};

/// Lines that are shown of each log.
const LINES: usize = 50;
/// Bytes at the end of a log among which they are looked for.
const TAIL: u64 = 64 * 1024;
/// How often followed logs are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The log of a part of the system.
pub(crate) trait Log {
    /// The name of the part.
    fn part(&self) -> &str;
    /// The last lines that there are, or all of them.
    fn first_look(&mut self, all: bool) -> Outcome<Vec<String>>;
    /// The lines that were added since the last look.
    fn new_lines(&mut self) -> Outcome<Vec<String>>;
}

/// Shows the logs: of the parts named in `words`, else of our services; `-f` follows them, `--all` shows them whole.
pub(crate) fn run(words: &[&str], mut logs: Vec<Box<dyn Log>>) -> Outcome {
    let (options, wanted): (Vec<&str>, Vec<&str>) = words.iter().copied().partition(|word| word.starts_with('-'));
    if let Some(unknown) = options.iter().find(|option| !["-f", "--all"].contains(option)) {
        return Err(Failure(format!("logs takes -f, --all and names of parts, not {unknown}.")));
    }
    if let Some(unknown) = wanted.iter().find(|name| !logs.iter().any(|log| log.part() == **name)) {
        let mut names: Vec<_> = logs.iter().map(|log| log.part()).collect();
        names.dedup();
        return Err(Failure(format!("There is no part {unknown:?}; there are {}.", names.join(", "))));
    }
    // The databases and the broker speak only when asked for: newcomers look for our services' lines.
    logs.retain(|log| if wanted.is_empty() { log.part().contains("-service") } else { wanted.contains(&log.part()) });
    let mut lines = Vec::new();
    for log in &mut logs {
        let part = log.part().to_owned();
        lines.extend(log.first_look(options.contains(&"--all"))?.into_iter().map(|line| (part.clone(), line)));
    }
    // Lines of our services begin with their time; others stay where they are.
    lines.sort_by_cached_key(|(_, line)| time_of(line));
    for (part, line) in lines {
        print_line(&part, &line);
    }
    while options.contains(&"-f") {
        for log in &mut logs {
            for line in log.new_lines()? {
                print_line(log.part(), &line);
            }
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// The log of a process of ours.
pub(crate) struct FileLog {
    part: &'static str,
    path: PathBuf,
    read: u64,
}

impl FileLog {
    pub(crate) fn new(part: &'static str, path: PathBuf) -> Self {
        Self { part, path, read: 0 }
    }
}

impl Log for FileLog {
    fn part(&self) -> &str {
        self.part
    }

    fn first_look(&mut self, all: bool) -> Outcome<Vec<String>> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(Vec::new()) };
        self.read = fs::metadata(&self.path)?.len();
        let begin = if all { 0 } else { self.read.saturating_sub(TAIL) };
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(self.read - begin).read_to_end(&mut bytes)?;
        // Not all of a log need be text.
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        // The first one may have been cut.
        let cut = usize::from(begin > 0 && !lines.is_empty());
        let skip = if all { 0 } else { lines.len().saturating_sub(LINES).max(cut) };
        Ok(lines.into_iter().skip(skip).collect())
    }

    fn new_lines(&mut self) -> Outcome<Vec<String>> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(Vec::new()) };
        if file.metadata().is_ok_and(|meta| meta.len() < self.read) {
            // It was begun anew.
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

/// The log of a container, as the engine keeps it.
pub(crate) struct ContainerLog {
    service: String,
    id: String,
    /// The engine's time of the last line that was shown.
    last: String,
    following: Option<Receiver<String>>,
}

impl ContainerLog {
    pub(crate) fn new(service: String, id: String) -> Self {
        Self { service, id, last: String::new(), following: None }
    }

    fn command(&self, arguments: &[&str]) -> Outcome<Command> {
        // A shell puts both outputs of the container into one, so that their order stays. It ends with us.
        let mut command = testbed::command("sh")?;
        let script = r#"exec docker logs "$@" 2>&1"#;
        command.args(["-c", script, "logs", "--timestamps"]).args(arguments).arg(&self.id).stdin(Stdio::null());
        Ok(command)
    }

    /// Takes the engine's time off a line; none if the line was shown already.
    fn fresh(&mut self, line: &str) -> Option<String> {
        let (time, text) = line.split_once(' ').unwrap_or((line, ""));
        (time > self.last.as_str()).then(|| {
            self.last = time.to_owned();
            text.to_owned()
        })
    }

    fn follow(&self) -> Outcome<Receiver<String>> {
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
            // It ends with its container, or with us.
            let _ = child.wait();
        });
        Ok(receiver)
    }
}

impl Log for ContainerLog {
    fn part(&self) -> &str {
        &self.service
    }

    fn first_look(&mut self, all: bool) -> Outcome<Vec<String>> {
        let lines = LINES.to_string();
        let output = self.command(&["--tail", if all { "all" } else { &lines }])?.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(Failure(text));
        }
        Ok(text.lines().filter_map(|line| self.fresh(line)).collect())
    }

    fn new_lines(&mut self) -> Outcome<Vec<String>> {
        let following = match self.following.take() {
            Some(following) => following,
            None => self.follow()?,
        };
        let mut lines = Vec::new();
        loop {
            match following.try_recv() {
                Ok(line) => lines.extend(self.fresh(&line)),
                Err(TryRecvError::Empty) => {
                    self.following = Some(following);
                    return Ok(lines);
                }
                // The container has ended, and may be started again.
                Err(TryRecvError::Disconnected) => return Ok(lines),
            }
        }
    }
}

fn time_of(line: &str) -> String {
    let json: Option<Json> = serde_json::from_str(line).ok();
    json.and_then(|json| json["time"].as_str().map(str::to_owned)).unwrap_or_default()
}

fn print_line(part: &str, line: &str) {
    let text = match serde_json::from_str::<Json>(line) {
        Ok(Json::Object(mut fields)) if stdout().is_terminal() => {
            let mut take = |name: &str| {
                fields.remove(name).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
            };
            let (time, level, message) = (take("time"), take("level"), take("message"));
            let (_, _) = (take("service"), take("target"));
            let rest: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{time} {level:5} {part:18} {message}  {}", rest.join(" "))
        }
        Ok(_) => line.to_owned(),
        Err(_) => format!("{part}: {line}"),
    };
    // A closed pipe (`just logs | head`) ends us.
    if writeln!(stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_not_all_text_is_shown_whole() {
        let scratch = testbed::Scratch::new().unwrap();
        let path = scratch.path().join("log");
        fs::write(&path, b"one\nb\xfccher\nthree\n").unwrap();
        let mut log = FileLog::new("part", path.clone());
        assert_eq!(log.first_look(false).unwrap(), ["one", "b\u{fffd}cher", "three"]);
        fs::write(&path, b"one\nb\xfccher\nthree\nf\xfcnf\nsi").unwrap();
        assert_eq!(log.new_lines().unwrap(), ["f\u{fffd}nf"], "a line that is not whole is shown later");
    }

    #[test]
    fn a_line_of_a_container_is_shown_once() {
        let mut log = ContainerLog::new("kafka".to_owned(), "0123".to_owned());
        assert_eq!(log.fresh("2026-11-22T17:00:00.000000001Z ready now"), Some("ready now".to_owned()));
        assert_eq!(log.fresh("2026-11-22T17:00:00.000000001Z ready now"), None);
        assert_eq!(log.fresh("2026-11-22T17:00:00.000000002Z "), Some(String::new()));
    }
}
