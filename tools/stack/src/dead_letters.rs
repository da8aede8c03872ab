//! Lists dead letters and sends them again.
//!
//! They are read from the dead letter topic, which has them all, with the original bytes, and outlives analytics' state. A
//! dead letter is sent to the partition that it came from; then a resent marker is written to the dead letter topic, so that
//! it is not sent a second time. A crash in between leads to a duplicate, which consumers of an at-least-once topic ignore.
//!
//! The dead letters in patient-service's database: `patient_dead_letters.rs`.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use anyhow::{Result, anyhow};
use chrono::{DateTime, Utc};
use codec::dead_letter::{self, Origin, RecordKind};
use kafka::{Consumer, Producer, Record, RecordAndOffset};
use serde_json::Value as Json;

use crate::{
    backend, patient_dead_letters,
    settings::Settings,
    topic::{self, DEAD_LETTERS},
};

/// Analytics writes to this partition.
const PARTITION: i32 = 0;
const FETCH_BYTES: i32 = 1 << 20;
const FETCH_WAIT: Duration = Duration::from_millis(200);
/// Time for analytics to consume what was sent.
const TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A dead letter without its content, which may be personal data. Its id is its offset on the topic of dead letters.
#[derive(Debug)]
struct DeadLetter {
    origin: Origin,
    error: String,
    bytes: usize,
    at: DateTime<Utc>,
    /// Where it was sent to.
    sent: Option<Origin>,
}

/// Prints the dead letters.
pub(crate) async fn list(settings: &Settings) -> Result<()> {
    let kafka = topic::kafka(settings, "dead-letters")?;
    let letters = read(&kafka).await?;
    let not_on_topic = match backend::analytics(settings)?.dead_letters().await {
        Ok(known) => known.into_iter().filter(|letter| letter["forwarded"] == false).collect(),
        Err(error) => {
            eprintln!(
                "Analytics does not respond, so dead letters that are not on the topic yet are missing here: {error}"
            );
            Vec::new()
        }
    };
    let rejected = patient_dead_letters::list(settings).await.unwrap_or_else(|error| {
        eprintln!("The dead letters of patient-service are missing here: {error}");
        Vec::new()
    });
    if letters.is_empty() && not_on_topic.is_empty() && rejected.is_empty() {
        println!("There are no dead letters.");
        return Ok(());
    }
    println!("{:>10}  {:<19}  {:<16}{:>9}  {:<26}why", "id", "since", "from", "bytes", "state");
    let line = |id: &str, at: &str, from: &str, bytes: u64, state: &str, error: &str| {
        println!("{id:>10}  {at:<19}  {from:<16}{bytes:>9}  {state:<24}  {error}");
    };
    for (id, DeadLetter { origin, error, bytes, at, sent }) in &letters {
        let at = at.format("%Y-%m-%d %H:%M:%S").to_string();
        let state = sent.as_ref().map_or("dead".to_owned(), |now| format!("sent again: {}", place(now)));
        line(&id.to_string(), &at, &place(origin), *bytes as u64, &state, error);
    }
    for letter in not_on_topic {
        let from = format!("{} {}:{}", topic::EVENTS, letter["partition"], letter["offset"]);
        let text = |field: &str| letter[field].as_str().unwrap_or_default().to_owned();
        let at = text("storedAt").get(..19).unwrap_or_default().replace('T', " ");
        line("-", &at, &from, letter["valueBytes"].as_u64().unwrap_or_default(), "not on topic yet", &text("error"));
    }
    for letter in &rejected {
        line(&letter.id, &letter.since, &letter.kind, letter.bytes, "rejected", &letter.error);
    }
    if !rejected.is_empty() || letters.values().any(|letter| letter.sent.is_none()) {
        println!("\nOnce the cause is fixed: just dead-letters --resend [ID...]; without an id, all of them.");
    }
    Ok(())
}

/// Sends dead letters again: those with these ids, or without ids all that were not yet. Prints the outcome.
pub(crate) async fn resend(settings: &Settings, ids: &[&str]) -> Result<()> {
    let kafka = topic::kafka(settings, "dead-letters")?;
    let letters = read(&kafka).await?;
    let (of_patient_service, of_topic): (Vec<&str>, Vec<&str>) =
        ids.iter().partition(|id| patient_dead_letters::is_id(id));
    let mut rejected: Vec<String> = Vec::new();
    if ids.is_empty() || !of_patient_service.is_empty() {
        rejected = patient_dead_letters::list(settings).await?.into_iter().map(|letter| letter.id).collect();
    }
    if let Some(unknown) = of_patient_service.iter().find(|id| !rejected.iter().any(|rejected| rejected == **id)) {
        return Err(anyhow!("There is no dead letter {unknown:?}; nothing was sent. See just dead-letters."));
    }
    let chosen = if ids.is_empty() || !of_topic.is_empty() { choose(&letters, &of_topic)? } else { Vec::new() };
    if chosen.is_empty() && rejected.is_empty() {
        println!("There is nothing to send again.");
        return Ok(());
    }
    let resubmitted = match rejected.is_empty() {
        true => Ok(()),
        false => patient_dead_letters::resend(settings, &of_patient_service).await,
    };
    if chosen.is_empty() {
        return resubmitted;
    }
    send_again(settings, kafka, &letters, chosen).await.and(resubmitted)
}

/// Sends these dead letters of the topic again, and prints what became of them.
async fn send_again(
    settings: &Settings,
    kafka: kafka::Settings,
    letters: &BTreeMap<i64, DeadLetter>,
    chosen: Vec<i64>,
) -> Result<()> {
    let mut sender = Sender {
        consumer: Consumer::new(kafka.clone(), DEAD_LETTERS, PARTITION),
        markers: Producer::new(kafka.clone(), DEAD_LETTERS),
        producers: HashMap::new(),
        kafka,
    };
    let mut sent = Vec::new();
    for id in chosen {
        let now = sender.send(id, &letters[&id].origin).await.map_err(|error| {
            let done = sent.len();
            anyhow!("{done} dead letters were sent again; {id} was not, or its resent marker is missing: {error}")
        })?;
        println!("{id:>10}  {} -> {}", place(&letters[&id].origin), place(&now));
        sent.push((id, now));
    }
    report(settings, sent).await
}

/// Sends the dead letter of this record of the events topic again, unless it was sent before.
pub(crate) async fn resend_from(settings: &Settings, partition: i32, offset: i64) -> Result<()> {
    let kafka = topic::kafka(settings, "dead-letters")?;
    let letters = read(&kafka).await?;
    let is_it = |origin: &Origin| {
        (origin.topic.as_str(), origin.partition, origin.offset) == (topic::EVENTS, partition, offset)
    };
    // The last one: a topic that was deleted and created again has the same offsets again.
    let found = letters.iter().rev().find(|(_, letter)| is_it(&letter.origin));
    match found {
        None => Err(anyhow!("It is not on the dead letter topic yet, or not any more.")),
        Some((_, DeadLetter { sent: Some(now), .. })) => Err(anyhow!("It was sent again before: {}.", place(now))),
        Some((id, _)) => send_again(settings, kafka, &letters, vec![*id]).await,
    }
}

/// The ids to send, in the order of the topic: those of one partition keep their order.
fn choose(letters: &BTreeMap<i64, DeadLetter>, ids: &[&str]) -> Result<Vec<i64>> {
    if ids.is_empty() {
        return Ok(letters.iter().filter(|(_, letter)| letter.sent.is_none()).map(|(id, _)| *id).collect());
    }
    let mut chosen = Vec::new();
    for text in ids {
        let found = text.parse().ok().and_then(|id| Some((id, letters.get(&id)?)));
        let Some((id, letter)) = found else {
            return Err(anyhow!("There is no dead letter {text:?}; nothing was sent. See just dead-letters."));
        };
        match &letter.sent {
            Some(now) => println!("{id:>10}  was sent again before: {}", place(now)),
            None => chosen.push(id),
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// Sends dead letters again and writes the resent markers.
struct Sender {
    kafka: kafka::Settings,
    consumer: Consumer,
    markers: Producer,
    producers: HashMap<String, Producer>,
}

impl Sender {
    async fn send(&mut self, id: i64, origin: &Origin) -> Result<Origin> {
        let fetched = self.consumer.fetch(id, FETCH_BYTES, FETCH_WAIT).await?;
        let letter = fetched.records.iter().find(|record| record.offset == id);
        let letter = letter.ok_or_else(|| anyhow!("it is not on its topic any more"))?.to_record().record;
        let key = letter.key.clone();
        let again = Record { headers: dead_letter::original_headers(letter.headers), timestamp: Utc::now(), ..letter };
        let topic = &origin.topic;
        let producer =
            self.producers.entry(topic.clone()).or_insert_with(|| Producer::new(self.kafka.clone(), topic.as_str()));
        if producer.partitions().await? <= origin.partition {
            return Err(anyhow!("the topic {topic} has no partition {} any more", origin.partition));
        }
        let offset = send_one(producer, origin.partition, again).await?;
        let now = Origin { offset, ..origin.clone() };
        let marker =
            Record { key, value: None, headers: dead_letter::resent_marker_headers(id, &now), timestamp: Utc::now() };
        send_one(&mut self.markers, PARTITION, marker).await?;
        Ok(now)
    }
}

async fn send_one(producer: &mut Producer, partition: i32, record: Record) -> Result<i64> {
    let result = producer.send(BTreeMap::from([(partition, vec![record])])).await.remove(&partition);
    let offsets = result.ok_or_else(|| anyhow!("nothing was sent"))??;
    offsets.first().copied().ok_or_else(|| anyhow!("the broker returns no offset"))
}

/// Waits until analytics has consumed what was sent, and prints which of it is dead again.
async fn report(settings: &Settings, sent: Vec<(i64, Origin)>) -> Result<()> {
    let analytics = backend::analytics(settings)?;
    let mut last = BTreeMap::new();
    for (_, now) in sent.iter().filter(|(_, now)| now.topic == topic::EVENTS) {
        last.insert(now.partition, now.offset);
    }
    let seen = async {
        analytics.until_applied(&last, TIMEOUT, POLL_INTERVAL, |_| ()).await?;
        analytics.dead_letters().await
    };
    let known = seen
        .await
        .map_err(|error| anyhow!("{} dead letters were sent again. The outcome is unknown: {error}", sent.len()))?;
    let mut dead = 0;
    for (id, now) in &sent {
        let is_it = |letter: &&Json| letter["partition"] == now.partition && letter["offset"] == now.offset;
        if let Some(letter) = known.iter().find(is_it) {
            dead += 1;
            println!("{id:>10}  is dead again: {}", letter["error"].as_str().unwrap_or_default());
        }
    }
    println!("{} sent again: {} accepted, {dead} dead again.", sent.len(), sent.len() - dead);
    if dead > 0 { Err(anyhow!("The cause persists.")) } else { Ok(()) }
}

fn place(Origin { topic, partition, offset }: &Origin) -> String {
    format!("{topic} {partition}:{offset}")
}

/// The dead letters on the topic by id, without the duplicates that a rebuild of analytics' state writes.
async fn read(kafka: &kafka::Settings) -> Result<BTreeMap<i64, DeadLetter>> {
    let mut consumer = Consumer::new(kafka.clone(), DEAD_LETTERS, PARTITION);
    let offsets = match consumer.offsets().await {
        // Analytics creates it with the first dead letter.
        Err(kafka::Error::UnknownTopic) => return Ok(BTreeMap::new()),
        result => result?,
    };
    let mut found = DeadLetters::default();
    let mut next = offsets.start;
    while next < offsets.end {
        let fetched = consumer.fetch(next, FETCH_BYTES, FETCH_WAIT).await?;
        if fetched.next == next {
            return Err(anyhow!("The topic {DEAD_LETTERS} cannot be read beyond offset {next}."));
        }
        next = fetched.next;
        fetched.records.iter().for_each(|record| found.add(&record.to_record()));
    }
    Ok(found.letters)
}

#[derive(Debug, Default)]
struct DeadLetters {
    letters: BTreeMap<i64, DeadLetter>,
    /// The first dead letter with this origin and content. The origin alone does not identify it: a topic that was deleted and
    /// created again has the same offsets again.
    first: HashMap<(Origin, u64), i64>,
    /// From a duplicate to the first.
    duplicates: HashMap<i64, i64>,
}

impl DeadLetters {
    fn add(&mut self, RecordAndOffset { record, offset }: &RecordAndOffset) {
        match dead_letter::parse(&record.headers) {
            RecordKind::DeadLetter { origin, error } => {
                let first = *self.first.entry((origin.clone(), digest(record))).or_insert(*offset);
                if first != *offset {
                    self.duplicates.insert(*offset, first);
                    return;
                }
                let bytes = record.value.as_ref().map_or(0, Vec::len);
                self.letters.insert(*offset, DeadLetter { origin, error, bytes, at: record.timestamp, sent: None });
            }
            RecordKind::Resent { dead_letter: letter, sent_to } => {
                let letter = self.duplicates.get(&letter).unwrap_or(&letter);
                if let Some(letter) = self.letters.get_mut(letter) {
                    letter.sent = Some(sent_to);
                }
            }
            RecordKind::Foreign => {}
        }
    }
}

fn digest(record: &Record) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&record.key, &record.value).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(offset: i64) -> Origin {
        Origin { topic: topic::EVENTS.to_owned(), partition: 2, offset }
    }

    fn record(offset: i64, headers: codec::headers::Headers, value: &str) -> RecordAndOffset {
        let value = Some(value.as_bytes().to_vec());
        RecordAndOffset { offset, record: Record { key: None, value, headers, timestamp: Utc::now() } }
    }

    fn letter(id: i64, offset: i64, value: &str) -> RecordAndOffset {
        record(id, dead_letter::add_headers(Default::default(), &origin(offset), "why"), value)
    }

    fn found(records: &[RecordAndOffset]) -> BTreeMap<i64, DeadLetter> {
        let mut found = DeadLetters::default();
        records.iter().for_each(|record| found.add(record));
        found.letters
    }

    #[test]
    fn a_duplicate_that_a_rebuild_writes_is_ignored_and_its_resent_marker_counts_for_the_first() {
        let mark = |id| record(9, dead_letter::resent_marker_headers(id, &origin(40)), "");
        for marked in [0, 2] {
            let letters = found(&[letter(0, 17, "a"), letter(1, 18, "b"), letter(2, 17, "a"), mark(marked)]);
            assert_eq!(letters.keys().copied().collect::<Vec<_>>(), [0, 1]);
            assert_eq!((&letters[&0].sent, &letters[&1].sent), (&Some(origin(40)), &None));
            assert_eq!(choose(&letters, &[]).unwrap(), [1]);
            assert_eq!(choose(&letters, &["1", "0"]).unwrap(), [1]);
            assert!(choose(&letters, &["2"]).is_err() && choose(&letters, &["x"]).is_err());
        }
    }

    #[test]
    fn dead_letters_of_a_recreated_topic_are_no_duplicates() {
        let letters = found(&[letter(0, 17, "a"), letter(1, 17, "b"), record(2, Default::default(), "not ours")]);
        assert_eq!(letters.len(), 2);
    }
}
