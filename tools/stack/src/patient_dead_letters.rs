//! Dead letters of patient-service, by its own command: events that the broker has rejected for good, and tasks that billing
//! has. They never were on a topic.

use serde_json::Value as Json;

use crate::{Failure, Outcome, backend, settings::Settings};

/// What the ids of these begin with, to tell them from the id of a record.
const PREFIXES: [&str; 2] = ["outbox-", "billing-"];

/// A dead letter, without its content, which is personal data.
#[derive(Clone, Debug)]
pub(crate) struct Rejected {
    pub(crate) id: String,
    /// The type of the event, or what billing was to do.
    pub(crate) kind: String,
    /// Length of the event.
    pub(crate) bytes: u64,
    /// As `2024-02-29 12:00:00`, in UTC.
    pub(crate) since: String,
    pub(crate) error: String,
}

impl Rejected {
    fn of(json: &Json) -> Option<Self> {
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

/// Whether an id is that of such a dead letter.
pub(crate) fn is_one(id: &str) -> bool {
    PREFIXES.iter().any(|prefix| id.starts_with(prefix))
}

/// All of them.
pub(crate) async fn list(settings: &Settings) -> Outcome<Vec<Rejected>> {
    let printed = run(settings, &["dead-letters", "--json"]).await?;
    Ok(printed.lines().filter_map(|line| Rejected::of(&serde_json::from_str(line).ok()?)).collect())
}

/// Resubmits these, and shows what has become of them.
pub(crate) async fn resend(settings: &Settings, ids: &[&str]) -> Outcome {
    let words = [&["dead-letters", "--resend"], ids].concat();
    print!("{}", run(settings, &words).await?);
    Ok(())
}

/// What the command prints. If it fails, that is part of the failure.
async fn run(settings: &Settings, words: &[&str]) -> Outcome<String> {
    let output = backend::run_patient_service(settings, words).await?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    Err(Failure(format!("{printed}{}", String::from_utf8_lossy(&output.stderr).trim_end())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_of_the_command_is_read() {
        let line = json!({
            "id": "outbox-12", "patientId": "p", "type": "PATIENT_CREATED", "bytes": 3,
            "since": "2024-02-29T12:00:00Z", "error": "MessageTooLarge"
        });
        let Rejected { id, kind, bytes, since, error } = Rejected::of(&line).unwrap();
        assert!(is_one(&id) && is_one("billing-1") && !is_one("12"));
        assert_eq!((&*kind, bytes, &*since, &*error), ("PATIENT_CREATED", 3, "2024-02-29 12:00:00", "MessageTooLarge"));
    }
}
