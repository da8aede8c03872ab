use std::{io, process::Output};

/// Lines of output that an error shows.
pub(crate) const MAX_LINES: usize = 15;

/// A process did not start, or a call to a server failed. Shows the last lines of the log or output, if there is one.
#[derive(Debug, thiserror::Error)]
#[error("{message}{}", .log.iter().map(|line| format!("\n  | {line}")).collect::<String>())]
pub struct Error {
    message: String,
    log: Vec<String>,
}

impl Error {
    /// An error without a log.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), log: Vec::new() }
    }

    /// An error that shows these lines of a log.
    pub(crate) fn with_log(message: impl Into<String>, log: Vec<String>) -> Self {
        Self { message: message.into(), log }
    }

    /// Whether a line of its log contains this text.
    pub(crate) fn shows(&self, text: &str) -> bool {
        self.log.iter().any(|line| line.contains(text))
    }

    /// An error that shows the last lines that a program printed.
    pub fn of_output(message: impl Into<String>, output: &Output) -> Self {
        let streams = [&output.stdout, &output.stderr].map(|stream| String::from_utf8_lossy(stream).into_owned());
        let lines: Vec<_> = streams.iter().flat_map(|stream| stream.lines()).map(str::to_owned).collect();
        Self::with_log(message, lines[lines.len().saturating_sub(MAX_LINES)..].to_vec())
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<kafka::Error> for Error {
    fn from(error: kafka::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<crate::http::RequestError> for Error {
    fn from(error: crate::http::RequestError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<runtime::Elapsed> for Error {
    fn from(error: runtime::Elapsed) -> Self {
        Self::new(error.to_string())
    }
}
