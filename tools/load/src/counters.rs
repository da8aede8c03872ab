//! The growth of counters during the measurement. A command prints them, such as PostgreSQL's statistics.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

/// Values by name.
pub(crate) type Counters = BTreeMap<String, f64>;

/// The counters that a command prints, `name value` on each line; none without a command.
///
/// # Errors
/// If the command fails, or a line is not `name value`.
pub(crate) async fn read(command: Option<&str>) -> Result<Counters, String> {
    let Some(command) = command.map(str::to_owned) else { return Ok(Counters::new()) };
    let run = smol::unblock(move || Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).output());
    let output = run.await.map_err(|error| format!("counters: {error}"))?;
    if !output.status.success() {
        return Err(format!("counters: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(text: &str) -> Result<Counters, String> {
    let line = |line: &str| {
        let (name, number) = line.trim().rsplit_once(char::is_whitespace)?;
        Some((name.trim().to_owned(), number.parse().ok()?))
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|text| line(text).ok_or_else(|| format!("counters: expected a name and a number: {text}"))).collect()
}

/// The growth of each counter; one that is missing in `before` was 0.
pub(crate) fn growth(before: &Counters, after: &Counters) -> Counters {
    let grown = |(name, now): (&String, &f64)| (name.clone(), now - before.get(name).copied().unwrap_or_default());
    after.iter().map(grown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_reported_by_name() {
        let read = |text| smol::block_on(read(Some(text))).unwrap();
        let (before, after) = (read("echo commits 5"), read("echo commits 7; echo; echo bytes of WAL 1.5"));
        let expected = [("commits".to_owned(), 2.0), ("bytes of WAL".to_owned(), 1.5)];
        assert_eq!(growth(&before, &after), expected.into());
        assert!(smol::block_on(super::read(Some("echo commits many"))).unwrap_err().contains("commits many"));
        assert!(smol::block_on(super::read(Some("exit 3"))).unwrap_err().contains("exit status: 3"));
    }
}
