//! The command `dead-letters`: lists what Kafka or billing has rejected for good, and resubmits it.
//!
//! It works on the database alone, beside the service: the service's relay and reconciler try what is resubmitted, and the
//! command waits for the outcome.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Write as _},
    str::FromStr,
    time::{Duration, Instant},
};

use chrono::{DateTime, SecondsFormat, Utc};
use postgres::Database;
use runtime::{Command, Failure, RunCommand};
use serde_json::json;
use uuid::Uuid;

use crate::{
    Settings,
    billing_tasks::BillingTasks,
    outbox::{Outbox, RowKey},
};

/// `patient-service dead-letters`.
pub const COMMAND: Command<Settings> = Command {
    name: "dead-letters",
    arguments: "[--resend [ID...] [--timeout SECONDS]] [--json]",
    about: "lists dead letters; --resend resubmits them, or those with these ids, and waits (30 s) for the outcome",
    parse,
};

/// Dead letters that one statement reads or moves.
const PAGE: i64 = 1000;
/// Default of `--timeout`: time to wait for the outcome.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How a dead letter is named. After a restore of the database two events may share an id; they are resubmitted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Id {
    /// An event, by the id that it had in the outbox: `outbox-12`.
    Event(i64),
    /// A task for billing, by its patient: `billing-0190a4c8-9a3b-7c1d-8e2f-3a4b5c6d7e8f`.
    BillingTask(Uuid),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(id) => write!(f, "outbox-{id}"),
            Self::BillingTask(patient_id) => write!(f, "billing-{patient_id}"),
        }
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let event = text.strip_prefix("outbox-").and_then(|id| id.parse().ok()).map(Self::Event);
        let task = || text.strip_prefix("billing-").and_then(|id| id.parse().ok()).map(Self::BillingTask);
        event.or_else(task).ok_or_else(|| format!("{text:?} is not an id such as outbox-12 or billing-<patient id>"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Arguments {
    /// Which to resubmit: none only lists, an empty list means all.
    resend: Option<Vec<Id>>,
    timeout: Duration,
    json: bool,
}

impl Arguments {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut arguments = Self { resend: None, timeout: DEFAULT_TIMEOUT, json: false };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            match (word, &mut arguments.resend) {
                ("--json", _) => arguments.json = true,
                ("--resend", resend @ None) => *resend = Some(Vec::new()),
                ("--timeout", Some(_)) => {
                    // Of 32 bits, so that the clock can hold the end.
                    let seconds: Option<u32> = words.next().and_then(|seconds| seconds.parse().ok());
                    let seconds = seconds.ok_or("--timeout takes a number of seconds, at most 4294967295")?;
                    arguments.timeout = Duration::from_secs(seconds.into());
                }
                (id, Some(ids)) if !id.starts_with('-') => ids.push(id.parse()?),
                _ => return Err(format!("unknown argument {word:?}")),
            }
        }
        Ok(arguments)
    }
}

fn parse(words: &[&str]) -> Result<RunCommand<Settings>, String> {
    let arguments = Arguments::parse(words)?;
    Ok(Box::new(move |settings| {
        Box::pin(async move {
            let database = Database::new(settings.database);
            database.assume_migrated();
            let dead_letters =
                DeadLetters { outbox: Outbox::new(database.clone()), tasks: BillingTasks::new(database.clone()) };
            let outcome = match &arguments.resend {
                None => dead_letters.list(arguments.json).await,
                Some(ids) => dead_letters.resend(ids, arguments.timeout, arguments.json).await,
            };
            database.close().await;
            outcome
        })
    }))
}

/// A dead letter as it is printed. Its content is not: it may be personal data.
struct Line {
    id: Id,
    patient_id: Uuid,
    /// `PATIENT_CREATED` and the like for an event, `OPEN` or `CLOSE` for a task.
    kind: String,
    /// Length of an event's value.
    bytes: Option<i64>,
    since: DateTime<Utc>,
    error: String,
}

impl Line {
    fn text(&self) -> String {
        let Self { id, patient_id: _, kind, bytes, since, error } = self;
        let bytes = bytes.map_or("-".to_owned(), |bytes| bytes.to_string());
        format!("{id:<44}  {:<19}  {kind:<16}  {bytes:>9}  {error}", since.format("%Y-%m-%d %H:%M:%S"))
    }

    fn json(&self) -> String {
        let Self { id, patient_id, kind, bytes, since, error } = self;
        let since = since.to_rfc3339_opts(SecondsFormat::Secs, true);
        let id = id.to_string();
        json!({ "id": id, "patientId": patient_id, "type": kind, "bytes": bytes, "since": since, "error": error })
            .to_string()
    }
}

struct DeadLetters {
    outbox: Outbox,
    tasks: BillingTasks,
}

impl DeadLetters {
    async fn list(&self, json: bool) -> Result<(), Failure> {
        let mut count = 0;
        self.for_each(|line, _| {
            if json {
                return print(&line.json());
            }
            if count == 0 {
                print(&format!("{:<44}  {:<19}  {:<16}  {:>9}  error", "id", "since", "type", "bytes"))?;
            }
            count += 1;
            print(&line.text())
        })
        .await?;
        if count == 0 && !json {
            print("There are no dead letters.")?;
        }
        Ok(())
    }

    /// Calls `take` with each dead letter, and the key of the row if it is an event.
    async fn for_each(&self, mut take: impl FnMut(Line, Option<RowKey>) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = self.outbox.dead_letters(after, PAGE).await.map_err(failure)?;
            for event in &page {
                let line = Line {
                    id: Id::Event(event.key.id),
                    patient_id: event.patient_id,
                    kind: event.event_type.clone(),
                    bytes: Some(event.bytes),
                    since: event.since,
                    error: event.error.clone(),
                };
                take(line, Some(event.key))?;
            }
            match page.last() {
                Some(last) if page.len() as i64 == PAGE => after = Some(last.key),
                _ => break,
            }
        }
        let mut after = None;
        loop {
            let page = self.tasks.dead_letters(after, PAGE).await.map_err(failure)?;
            for task in &page {
                let line = Line {
                    id: Id::BillingTask(task.patient_id),
                    patient_id: task.patient_id,
                    kind: task.action.name().to_owned(),
                    bytes: None,
                    since: task.since,
                    error: task.error.clone(),
                };
                take(line, None)?;
            }
            match page.last() {
                Some(last) if page.len() as i64 == PAGE => after = Some(last.patient_id),
                _ => return Ok(()),
            }
        }
    }

    /// Resubmits the dead letters with these ids, or all if there are none, and reports the outcomes.
    async fn resend(&self, ids: &[Id], timeout: Duration, json: bool) -> Result<(), Failure> {
        let (mut keys, mut patient_ids, mut found) = (Vec::new(), Vec::new(), BTreeSet::new());
        self.for_each(|line, key| {
            if ids.is_empty() || ids.contains(&line.id) {
                found.insert(line.id);
                match key {
                    Some(key) => keys.push(key),
                    None => patient_ids.push(line.patient_id),
                }
            }
            Ok(())
        })
        .await?;
        if let Some(unknown) = ids.iter().find(|id| !found.contains(id)) {
            return Err(format!("there is no dead letter {unknown}; nothing was resubmitted").into());
        }
        if found.is_empty() {
            return if json { Ok(()) } else { print("There are no dead letters.") };
        }
        let resubmitted = self.resubmit(&keys, &patient_ids).await?;
        let outcomes = resubmitted.outcomes(self, timeout).await?;
        report(&outcomes, json)
    }

    async fn resubmit(&self, keys: &[RowKey], patient_ids: &[Uuid]) -> Result<Resubmitted, Failure> {
        let before: BTreeMap<Uuid, i64> = keys.iter().map(|key| (key.event_id, key.id)).collect();
        let mut resubmitted = Resubmitted { events: Vec::new(), patient_ids: Vec::new() };
        for keys in keys.chunks(PAGE as usize) {
            let moved = self.outbox.resend(keys).await.map_err(|error| resubmitted.interrupted(error))?;
            resubmitted.events.extend(moved.into_iter().filter_map(|key| Some((*before.get(&key.event_id)?, key))));
        }
        for patient_ids in patient_ids.chunks(PAGE as usize) {
            let moved = self.tasks.resend(patient_ids).await.map_err(|error| resubmitted.interrupted(error))?;
            resubmitted.patient_ids.extend(moved);
        }
        Ok(resubmitted)
    }
}

/// Dead letters that are back in the outbox or among billing's tasks.
struct Resubmitted {
    /// With the ids that they had as dead letters.
    events: Vec<(i64, RowKey)>,
    patient_ids: Vec<Uuid>,
}

/// Outcome of a resubmitted dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Accepted,
    /// Without success so far; it is retried.
    Pending,
    /// With the error.
    DeadLettered(String),
}

impl Resubmitted {
    fn interrupted(&self, error: postgres::Error) -> Failure {
        let count = self.events.len() + self.patient_ids.len();
        format!("{count} were resubmitted, perhaps more; list them again: {error}").into()
    }

    /// Waits until each is accepted or a dead letter again, or until the time is up.
    async fn outcomes(&self, dead_letters: &DeadLetters, timeout: Duration) -> Result<BTreeMap<Id, Outcome>, Failure> {
        let end = Instant::now() + timeout;
        let keys: Vec<RowKey> = self.events.iter().map(|(_, key)| *key).collect();
        let pending = loop {
            let events = dead_letters.outbox.still_pending(&keys).await;
            let tasks = dead_letters.tasks.still_pending(&self.patient_ids).await;
            let (events, tasks) =
                events.and_then(|events| Ok((events, tasks?))).map_err(|error| self.interrupted(error))?;
            if (events.is_empty() && tasks.is_empty()) || Instant::now() >= end {
                break (events, tasks);
            }
            smol::Timer::after(POLL_INTERVAL).await;
        };
        let mut outcomes = BTreeMap::new();
        for (id, key) in &self.events {
            let outcome = if pending.0.contains(key) { Outcome::Pending } else { Outcome::Accepted };
            outcomes.insert(Id::Event(*id), outcome);
        }
        for patient_id in &self.patient_ids {
            let outcome = if pending.1.contains(patient_id) { Outcome::Pending } else { Outcome::Accepted };
            outcomes.insert(Id::BillingTask(*patient_id), outcome);
        }
        // A dead letter is written in the statement that deletes the event or the task.
        let ids: BTreeMap<Uuid, i64> = self.events.iter().map(|(id, key)| (key.event_id, *id)).collect();
        dead_letters
            .for_each(|line, key| {
                let id = match key {
                    Some(key) => ids.get(&key.event_id).copied().map(Id::Event),
                    None => Some(line.id),
                };
                if let Some(outcome) = id.and_then(|id| outcomes.get_mut(&id)) {
                    *outcome = Outcome::DeadLettered(line.error);
                }
                Ok(())
            })
            .await?;
        Ok(outcomes)
    }
}

fn report(outcomes: &BTreeMap<Id, Outcome>, json: bool) -> Result<(), Failure> {
    let count = |is: fn(&Outcome) -> bool| outcomes.values().filter(|outcome| is(outcome)).count();
    let accepted = count(|outcome| matches!(outcome, Outcome::Accepted));
    let pending = count(|outcome| matches!(outcome, Outcome::Pending));
    let dead_lettered = outcomes.len() - accepted - pending;
    for (id, outcome) in outcomes {
        let (name, error) = match outcome {
            Outcome::Accepted => ("accepted", None),
            Outcome::Pending => ("pending", None),
            Outcome::DeadLettered(error) => ("dead-lettered", Some(error)),
        };
        if json {
            print(&json!({ "id": id.to_string(), "outcome": name, "error": error }).to_string())?;
        } else if *outcome != Outcome::Accepted {
            print(&format!("{id}  {name}{}", error.map_or_else(String::new, |error| format!(" again: {error}"))))?;
        }
    }
    if !json {
        print(&format!(
            "{} resubmitted: {accepted} accepted, {pending} pending, {dead_lettered} dead-lettered again.",
            outcomes.len()
        ))?;
    }
    match (dead_lettered, pending) {
        (0, 0) => Ok(()),
        (0, _) => Err("some are still pending; the log of patient-service says why".to_owned().into()),
        _ => Err("the cause persists".to_owned().into()),
    }
}

fn failure(error: postgres::Error) -> Failure {
    error.to_string().into()
}

/// Prints a line. A reader that has gone (`| head`) ends the output, not the command.
fn print(line: &str) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string().into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_in_any_order_and_unknown_ones_rejected() {
        let patient_id = Uuid::nil();
        let task = format!("billing-{patient_id}");
        for (words, resend, seconds, json) in [
            (&[][..], None, 30, false),
            (&["--json"], None, 30, true),
            (&["--resend"], Some(vec![]), 30, false),
            (
                &["--resend", "outbox-12", "--json", &task],
                Some(vec![Id::Event(12), Id::BillingTask(patient_id)]),
                30,
                true,
            ),
            (&["--json", "--resend", "--timeout", "5", "outbox-1"], Some(vec![Id::Event(1)]), 5, true),
        ] {
            let expected = Arguments { resend, timeout: Duration::from_secs(seconds), json };
            assert_eq!(Arguments::parse(words), Ok(expected), "{words:?}");
        }
        for wrong in [
            &["outbox-12"][..],
            &["--resend", "12"],
            &["--resend", "outbox-x"],
            &["--resend", "billing-12"],
            &["--resend", "--resend"],
            &["--timeout", "5"],
            &["--resend", "--timeout"],
            &["--resend", "--timeout", "soon"],
            &["--resend", "--timeout", "9223372036854775807"],
            &["--all"],
        ] {
            assert!(Arguments::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
