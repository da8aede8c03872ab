//! What the console and the stack's agent say to each other.

use serde::{Deserialize, Serialize};

/// What can be done to a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verb {
    /// It ends as by a crash, and is started again at the end.
    Kill,
    /// It stands still.
    Pause,
    /// It stands still half of the time.
    Slow,
    /// The end of whatever is done to it.
    Resume,
    /// No fault: a dead letter is sent again. Its part is where it came from, `partition:offset`, or its id in
    /// patient-service.
    Resend,
    /// No fault: the dead letters of patient-service are listed.
    List,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Slow => "slow",
            Self::Resume => "resume",
            Self::Resend => "resend",
            Self::List => "list",
        }
    }
}

/// A part that the agent can do something to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Target {
    pub(crate) id: String,
    pub(crate) verbs: Vec<Verb>,
}

/// A part that the agent leaves alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Excluded {
    pub(super) id: String,
    pub(super) why: String,
}

/// What an agent says with its poll.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct AgentPoll {
    pub(super) parts: Vec<Target>,
    pub(super) excluded: Vec<Excluded>,
    /// How the work is that it was given, in order. A report may come twice.
    #[serde(default)]
    pub(super) reports: Vec<Report>,
}

/// How a piece of work is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Report {
    pub(super) run: String,
    pub(super) state: Progress,
    #[serde(default)]
    pub(super) detail: Option<String>,
    /// What was listed.
    #[serde(default)]
    pub(super) letters: Vec<Letter>,
}

/// A dead letter of patient-service: an event that the broker has rejected for good, or a task that billing has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Letter {
    /// `outbox-7`, or `billing-` with the id of its patient.
    pub(super) id: String,
    /// The type of the event, or the action of the task.
    pub(super) kind: String,
    /// Bytes of the event; 0 for a task.
    pub(super) bytes: u64,
    pub(super) since: String,
    pub(super) error: String,
}

impl AgentPoll {
    /// The same poll, to be repeated without its reports.
    pub(crate) fn without_reports(&self) -> Self {
        Self { reports: Vec::new(), ..self.clone() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Progress {
    /// The fault is in force.
    Injected,
    /// It is over and the part runs.
    Healed,
    /// It could not be done.
    Failed,
}

/// A piece of work for the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Work {
    pub(crate) run: String,
    pub(crate) part: String,
    pub(crate) verb: Verb,
    pub(crate) seconds: u64,
}
