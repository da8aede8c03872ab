//! The lines of a log that an error shows.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use crate::error::MAX_LINES;

/// Of the lines that an error shows, those from the beginning of the output of a program that ran to its end.
const FIRST_LINES: usize = 5;
/// Bytes that are read at either end of a log to find those lines.
const MAX_BYTES: u64 = 64 * 1024;

/// The last lines of a file; bytes that are not UTF-8 are replaced.
pub(super) fn last_lines(path: &Path) -> Vec<String> {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(MAX_BYTES)))?;
        text(file)
    };
    let lines: Vec<_> = read().unwrap_or_default();
    lines[lines.len().saturating_sub(MAX_LINES)..].to_vec()
}

/// The first and the last lines of a file from the position `after`. Some programs print the cause first, and then a long
/// backtrace.
pub(super) fn first_and_last_lines(path: &Path, after: u64) -> Vec<String> {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(after))?;
        text(file)
    };
    let first: Vec<_> = read().unwrap_or_default();
    if first.len() <= MAX_LINES {
        return first;
    }
    let last = last_lines(path);
    let last = &last[last.len().saturating_sub(MAX_LINES - FIRST_LINES)..];
    first[..FIRST_LINES].iter().cloned().chain(["...".to_owned()]).chain(last.iter().cloned()).collect()
}

fn text(file: File) -> io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
}
