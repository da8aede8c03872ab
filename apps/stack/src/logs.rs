//! The end of the logs, in the order of time; with `-f`, what is added to them.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _, stdout},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde_json::Value as Json;

use crate::{Failure, Outcome, home};

/// Lines that are shown of each log.
const LINES: usize = 50;
/// Bytes at the end of a log among which they are looked for.
const TAIL: u64 = 64 * 1024;
/// How often followed logs are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Parts with their logs, in the folder of the data.
pub(crate) const LOGS: [(&str, &str); 5] = [
    ("patient-service", "patient-service.log"),
    ("billing-service", "billing-service.log"),
    ("analytics-service", "analytics-service.log"),
    ("broker", "broker/broker.log"),
    ("postgres", "postgres/postgres.log"),
];

pub(crate) fn run(words: &[&str]) -> Outcome {
    let follow = words.contains(&"-f");
    let wanted: Vec<&str> = words.iter().filter(|word| **word != "-f").copied().collect();
    let known = |name: &&str| LOGS.iter().any(|(part, _)| part == name);
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        let names: Vec<_> = LOGS.iter().map(|(part, _)| *part).collect();
        return Err(Failure(format!("There is no part {unknown:?}; there are {}.", names.join(", "))));
    }
    let directory = home::directory()?;
    // PostgreSQL and the broker speak only when asked for: newcomers look for our services' lines.
    let shown = |part: &str| if wanted.is_empty() { part.ends_with("-service") } else { wanted.contains(&part) };
    let mut files: Vec<Follow> = LOGS
        .iter()
        .filter(|(part, _)| shown(part))
        .map(|(part, log)| Follow { part, path: directory.join(log), read: 0 })
        .collect();
    let mut lines = Vec::new();
    for file in &mut files {
        let (end, last) = last_lines(&file.path);
        file.read = end;
        lines.extend(last.into_iter().map(|line| (file.part, line)));
    }
    // Lines of our services begin with their time; others stay where they are.
    lines.sort_by_key(|(_, line)| time_of(line));
    for (part, line) in lines {
        print_line(part, &line);
    }
    if !follow {
        return Ok(());
    }
    loop {
        for file in &mut files {
            for line in file.new_lines() {
                print_line(file.part, &line);
            }
        }
        thread::sleep(LOOK);
    }
}

struct Follow {
    part: &'static str,
    path: PathBuf,
    read: u64,
}

impl Follow {
    fn new_lines(&mut self) -> Vec<String> {
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        if file.metadata().is_ok_and(|meta| meta.len() < self.read) {
            // It was begun anew.
            self.read = 0;
        }
        let mut text = String::new();
        if file.seek(SeekFrom::Start(self.read)).is_err() || file.read_to_string(&mut text).is_err() {
            return Vec::new();
        }
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        text[..whole].lines().map(str::to_owned).collect()
    }
}

fn last_lines(path: &Path) -> (u64, Vec<String>) {
    let Ok(mut file) = File::open(path) else { return (0, Vec::new()) };
    let length = fs::metadata(path).map_or(0, |meta| meta.len());
    let begin = length.saturating_sub(TAIL);
    if file.seek(SeekFrom::Start(begin)).is_err() {
        return (0, Vec::new());
    }
    let lines: Vec<_> = BufReader::new(file).lines().map_while(Result::ok).collect();
    // The first one may have been cut.
    let skip = lines.len().saturating_sub(LINES).max(usize::from(begin > 0 && !lines.is_empty()));
    (length, lines.into_iter().skip(skip).collect())
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
