//! Keeps replaced names from coming back: code uses the standard terms of Kafka, PostgreSQL, HTTP and Rust.

use std::fs;

use crate::{root, sources};

/// Identifiers that were replaced, each with the name to use. Whole identifiers in code alone: not in comments or strings.
const REPLACED: [(&str, &str); 46] = [
    ("Seen", "LowWatermark, or what was observed"),
    ("Forgetting", "AckedDeleter"),
    ("DoneReceiver", "CompletedTaskDeleter"),
    ("Shown", "ReadModel"),
    ("Tally", "Counts"),
    ("Intake", "Ingest"),
    ("Wake", "Notify"),
    ("Lent", "PooledConnection"),
    ("lend", "acquire"),
    ("or_stop", "run_until_stopped"),
    ("Subject", "SystemUnderTest"),
    ("strike", "inject"),
    ("Ground", "BackingServices"),
    ("OwnGround", "DedicatedServers"),
    ("Places", "Auditor"),
    ("Told", "AcknowledgedPatient"),
    ("HoldAnswers", "StallResponses"),
    ("StartError", "Error"),
    ("Wish", "RequestedBackend"),
    ("LOOK", "POLL_INTERVAL"),
    ("TELL", "REPORT_INTERVAL"),
    ("MOST", "MAX_..."),
    ("PAUSES", "BACKOFF"),
    ("PATIENCE", "TIMEOUT"),
    ("NoAnswer", "RequestError"),
    ("Wanted", "the name of what is requested, such as PendingQuery"),
    ("Begun", "SentWrite"),
    ("Question", "AgentPoll"),
    ("Refusal", "the name of the error, such as LabError"),
    ("Facts", "SystemStatus"),
    ("Noted", "Observations"),
    ("WatchedIo", "ObservedIo"),
    ("Follower", "EventFollower"),
    ("NEVER", "UNSET"),
    ("EVERY", "..._INTERVAL"),
    ("FAR_BELOW", "MIN_RELATIVE_RATIO"),
    ("OF_THE_CONNECTION", "HOP_BY_HOP"),
    ("KeySpent", "PatientOfKeyDeleted"),
    ("patience", "timeout, or grace"),
    ("ourselves", "own, or the name of the program"),
    ("hold_lease", "acquire_or_renew_lease"),
    ("keep_up", "advance, or what it does"),
    ("is_unimpeded", "can_send_to_all"),
    ("AbsentIsNotNull", "OptionalIsNotNullable"),
    ("Mix", "ScenarioKind"),
    ("SETTLE", "SETTLE_TIME"),
];

#[test]
fn replaced_names_do_not_come_back() {
    let mut found = Vec::new();
    for folder in ["apps", "libs", "tools", "tests"] {
        for file in sources(&root().join(folder)) {
            if file.extension().is_none_or(|extension| extension != "rs")
                || file.ends_with("architecture/vocabulary.rs")
            {
                continue;
            }
            let code = code(&fs::read_to_string(&file).unwrap());
            for (name, instead) in replaced_in(&code) {
                found.push(format!("{}: {name}, use {instead}", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_replaced_name_is_found_in_code_alone() {
    let names = |text: &str| replaced_in(&code(text)).map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names("struct Lent<'a> { seen: Seen }"), ["Seen", "Lent"]);
    assert!(
        names("// Lent\nlet text = \"Lent \\\" Lent\"; let mark = '\"'; fn silent() { relent(Lentils) }").is_empty()
    );
    assert!(names("let text = r#\"Lent \"Lent\" \"#; /* Lent */ let quote = b'\\'';").is_empty());
}

fn replaced_in(code: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let words: std::collections::BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    REPLACED.into_iter().filter(move |(name, _)| words.contains(name))
}

/// The text without comments, strings and character literals.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest).filter(|_| !code.ends_with(is_word)) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && (rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'')) {
            quoted(rest, '\'')
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the raw string at the start of `text`.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = text.len() - after.len() + hashes + 1;
    Some(text[begin..].find(&end).map_or(text.len(), |at| begin + at + end.len()))
}

/// The length of the literal in quotes at the start of `text`.
fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = true;
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}
