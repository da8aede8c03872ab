//! Events that the broker refuses for good. patient-service puts them aside in its database: they never were on a topic.

use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::{Failure, Outcome, backend::PatientsDatabase, settings::Settings};

/// What the id of one begins with, to tell it from the id of a record.
const PREFIX: &str = "outbox-";
/// How long the relay may take to send them, and how often we look.
const TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// An event put aside, without its content, which is personal data.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    id: i64,
    event_id: String,
    pub(crate) event_type: String,
    pub(crate) bytes: u64,
    /// As `2024-02-29 12:00:00`, in UTC.
    pub(crate) since: String,
    pub(crate) error: String,
}

impl Refused {
    /// As it is shown and asked for.
    pub(crate) fn name(&self) -> String {
        format!("{PREFIX}{}", self.id)
    }

    fn of(json: &Json) -> Option<Self> {
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        Some(Self {
            id: json["id"].as_i64()?,
            event_id: text("eventId")?,
            event_type: text("eventType")?,
            bytes: json["bytes"].as_u64()?,
            since: text("since")?,
            error: text("error")?,
        })
    }
}

/// Whether an id is one of these events'.
pub(crate) fn is_one(id: &str) -> bool {
    id.starts_with(PREFIX)
}

/// All of them, the oldest first.
pub(crate) async fn list(settings: &Settings) -> Outcome<Vec<Refused>> {
    select(&PatientsDatabase::of(settings).await?, "true").await
}

/// Puts events back into the outbox and waits until the relay has sent them. Tells which of them are refused again.
pub(crate) async fn resend(settings: &Settings, events: &[Refused]) -> Outcome {
    let database = PatientsDatabase::of(settings).await?;
    let among = |what: &str, ids: &[String]| format!("{what} IN ({})", ids.join(", "));
    let ids: Vec<_> = events.iter().map(|event| event.id.to_string()).collect();
    let event_ids: Vec<_> = events.iter().map(|event| format!("'{}'", event.event_id)).collect();
    // An event that somebody else has sent again meanwhile is not there any more.
    let moved = database
        .ask(&format!(
            "WITH again AS (
                DELETE FROM outbox_dead_letters WHERE {}
                RETURNING id, patient_id, key_hash, event_id, event_type, value, traceparent
            ), moved AS (
                INSERT INTO outbox (patient_id, key_hash, event_id, event_type, value, traceparent)
                SELECT patient_id, key_hash, event_id, event_type, value, traceparent FROM again ORDER BY id
                RETURNING event_id
            )
            SELECT json_build_object('eventId', event_id)::text FROM moved",
            among("id", &ids)
        ))
        .await?
        .len();
    let waiting = format!(
        "SELECT json_build_object('count', count(*))::text FROM outbox WHERE {}",
        among("event_id", &event_ids)
    );
    let end = Instant::now() + TIMEOUT;
    while database.ask(&waiting).await?.first().is_some_and(|row| row["count"] != 0) {
        if Instant::now() > end {
            return Err(Failure(format!(
                "{moved} events are in the outbox again and not sent yet: see just logs patient-service."
            )));
        }
        smol::Timer::after(POLL_INTERVAL).await;
    }
    let again = select(&database, &among("event_id", &event_ids)).await?;
    for event in &again {
        println!("{:>10}  is refused again: {}", event.name(), event.error);
    }
    println!("{moved} events published again: {} accepted, {} refused again.", moved - again.len(), again.len());
    if again.is_empty() { Ok(()) } else { Err(Failure("The cause is not mended.".to_owned())) }
}

async fn select(database: &PatientsDatabase, condition: &str) -> Outcome<Vec<Refused>> {
    let rows = database
        .ask(&format!(
            "SELECT json_build_object('id', id, 'eventId', event_id, 'eventType', event_type, 'bytes', length(value),
                'since', to_char(refused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), 'error', error)::text
            FROM outbox_dead_letters WHERE {condition} ORDER BY id"
        ))
        .await?;
    Ok(rows.iter().filter_map(Refused::of).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_put_aside_has_an_id_of_its_own_kind() {
        let row = json!({"id": 12, "eventId": "e", "eventType": "t", "bytes": 3, "since": "now", "error": "too large"});
        let name = Refused::of(&row).unwrap().name();
        assert!(is_one(&name) && name == "outbox-12" && !is_one("12"));
    }
}
