//! Dead letters of patient-service, with its subcommand: events that the broker has rejected for good, and tasks that billing
//! has. They are in its database and never were on a topic.

use anyhow::{Result, anyhow};
use serde_json::{Value as Json, json};

use crate::{backend, settings::Settings};

/// Prefixes of their ids. The id of a record on a topic is a number.
const PREFIXES: [&str; 2] = ["outbox-", "billing-"];

/// Characters of an error that the console gets.
const MAX_ERROR: usize = 300;
/// Time for patient-service to see the outcome of one that the console resends, in seconds.
const OUTCOME_SECONDS: &str = "20";

/// A dead letter, without its content, which is personal data.
#[derive(Clone, Debug)]
pub(crate) struct PatientDeadLetter {
    pub(crate) id: String,
    /// The type of the event, or the action of the task.
    pub(crate) kind: String,
    /// Length of the event.
    pub(crate) bytes: u64,
    /// As `2024-02-29 12:00:00`, in UTC.
    pub(crate) since: String,
    pub(crate) error: String,
}

impl PatientDeadLetter {
    fn from_json(json: &Json) -> Option<Self> {
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        Some(Self {
            id: text("id")?,
            kind: text("type")?,
            bytes: json["bytes"].as_u64().unwrap_or_default(),
            since: text("since")?.get(..19)?.replace('T', " "),
            error: text("error")?,
        })
    }
}

impl PatientDeadLetter {
    /// As the console takes it. Its error is bounded.
    pub(crate) fn to_json(&self) -> Json {
        let Self { id, kind, bytes, since, error } = self;
        let error: String = error.chars().take(MAX_ERROR).collect();
        json!({ "id": id, "kind": kind, "bytes": bytes, "since": format!("{}Z", since.replace(' ', "T")), "error": error })
    }
}

/// Whether an id is that of such a dead letter.
pub(crate) fn is_id(id: &str) -> bool {
    PREFIXES.iter().any(|prefix| id.starts_with(prefix))
}

/// All of them.
pub(crate) async fn list(settings: &Settings) -> Result<Vec<PatientDeadLetter>> {
    let stdout = run(settings, &["dead-letters", "--json"]).await?;
    Ok(stdout.lines().filter_map(|line| PatientDeadLetter::from_json(&serde_json::from_str(line).ok()?)).collect())
}

/// Resubmits those with these ids, all without ids, and prints the outcome.
pub(crate) async fn resend(settings: &Settings, ids: &[&str]) -> Result<()> {
    let arguments = [&["dead-letters", "--resend"], ids].concat();
    print!("{}", run(settings, &arguments).await?);
    Ok(())
}

/// Resubmits the one with this id.
///
/// # Errors
/// If it is a dead letter again or still pending, or if the subcommand fails.
pub(crate) async fn resend_one(settings: &Settings, id: &str) -> Result<()> {
    let arguments = ["dead-letters", "--resend", id, "--timeout", OUTCOME_SECONDS, "--json"];
    let output = backend::run_patient_service(settings, &arguments).await?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let outcome = stdout.lines().find_map(|line| serde_json::from_str::<Json>(line).ok());
    match outcome.as_ref().and_then(|outcome| outcome["outcome"].as_str()) {
        Some("accepted") => Ok(()),
        Some("pending") => Err(anyhow!("It is tried again and still pending; the log of patient-service says why.")),
        Some(_) => {
            Err(anyhow!("{}", outcome.as_ref().and_then(|outcome| outcome["error"].as_str()).unwrap_or_default()))
        }
        None => Err(anyhow!("{}", String::from_utf8_lossy(&output.stderr).trim_end())),
    }
}

/// The stdout of patient-service with these arguments. The error has it too.
async fn run(settings: &Settings, arguments: &[&str]) -> Result<String> {
    let output = backend::run_patient_service(settings, arguments).await?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    Err(anyhow!("{stdout}{}", String::from_utf8_lossy(&output.stderr).trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_subcommand_is_parsed() {
        let line = json!({
            "id": "outbox-12", "patientId": "p", "type": "PATIENT_CREATED", "bytes": 3,
            "since": "2024-02-29T12:00:00Z", "error": "MessageTooLarge"
        });
        let PatientDeadLetter { id, kind, bytes, since, error } = PatientDeadLetter::from_json(&line).unwrap();
        assert!(is_id(&id) && is_id("billing-1") && !is_id("12"));
        let shown = PatientDeadLetter::from_json(&line).unwrap().to_json();
        assert_eq!((&shown["since"], shown.get("patientId")), (&json!("2024-02-29T12:00:00Z"), None));
        assert_eq!((&*kind, bytes, &*since, &*error), ("PATIENT_CREATED", 3, "2024-02-29 12:00:00", "MessageTooLarge"));
    }
}
