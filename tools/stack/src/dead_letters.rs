//! Dead letters: what there are, and sending them again once the cause is mended.
//!
//! The topic of dead letters is what counts: it has them all, with the original bytes, and outlives analytics' state. A
//! letter that is sent again goes to the end of the partition that it came from; then a mark goes to the topic of dead
//! letters, so that it is not sent a second time. A crash in between sends it twice, as any event may come twice.
//!
//! What patient-service has dead-lettered in its database is `patient_dead_letters.rs`'s.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use chrono::{DateTime, Utc};
use codec::dead_letter::{self, Origin, RecordKind};
use kafka::{Consumer, Producer, Record, RecordAndOffset};
use serde_json::Value as Json;

use crate::{
    Failure, Outcome, backend, patient_dead_letters,
    settings::Settings,
    topic::{self, DEAD_LETTERS},
};

/// Analytics writes to this partition.
const PARTITION: i32 = 0;
const FETCH_BYTES: i32 = 1 << 20;
const FETCH_WAIT: Duration = Duration::from_millis(200);
/// How long analytics may take to show what became of the letters, and how often we look.
const TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A dead letter without its content, which may be personal data. Its id is its offset on the topic of dead letters.
#[derive(Debug)]
struct Letter {
    origin: Origin,
    error: String,
    bytes: usize,
    at: DateTime<Utc>,
    /// Where it is, once it was sent again.
    sent: Option<Origin>,
}

/// Shows the dead letters.
pub(crate) async fn list(settings: &Settings) -> Outcome {
    let kafka = topic::kafka(settings, "dead-letters")?;
    let letters = read(&kafka).await?;
    let on_their_way = match backend::analytics(settings)?.dead_letters().await {
        Ok(known) => known.into_iter().filter(|letter| letter["forwarded"] == false).collect(),
        Err(Failure(why)) => {
            eprintln!(
                "Analytics does not answer, so that letters which are not on their topic yet are not shown: {why}"
            );
            Vec::new()
        }
    };
    let rejected = patient_dead_letters::list(settings).await.unwrap_or_else(|Failure(why)| {
        eprintln!("Those of patient-service are not shown: {why}");
        Vec::new()
    });
    if letters.is_empty() && on_their_way.is_empty() && rejected.is_empty() {
        println!("There are no dead letters.");
        return Ok(());
    }
    println!("{:>10}  {:<19}  {:<16}{:>9}  {:<26}why", "id", "since", "from", "bytes", "state");
    let line = |id: &str, at: &str, from: &str, bytes: u64, state: &str, why: &str| {
        println!("{id:>10}  {at:<19}  {from:<16}{bytes:>9}  {state:<24}  {why}");
    };
    for (id, Letter { origin, error, bytes, at, sent }) in &letters {
        let at = at.format("%Y-%m-%d %H:%M:%S").to_string();
        let state = sent.as_ref().map_or("dead".to_owned(), |now| format!("sent again: {}", place(now)));
        line(&id.to_string(), &at, &place(origin), *bytes as u64, &state, error);
    }
    for letter in on_their_way {
        let from = format!("{} {}:{}", topic::EVENTS, letter["partition"], letter["offset"]);
        let text = |field: &str| letter[field].as_str().unwrap_or_default().to_owned();
        let at = text("parkedAt").get(..19).unwrap_or_default().replace('T', " ");
        line("-", &at, &from, letter["valueBytes"].as_u64().unwrap_or_default(), "not on topic yet", &text("error"));
    }
    for letter in &rejected {
        line(&letter.id, &letter.since, &letter.kind, letter.bytes, "rejected", &letter.error);
    }
    if !rejected.is_empty() || letters.values().any(|letter| letter.sent.is_none()) {
        println!("\nOnce the cause is mended: just dead-letters --resend [ID...]; without an id, all that are dead.");
    }
    Ok(())
}

/// Sends dead letters again: these, or without ids all that were not yet. Says what became of them.
pub(crate) async fn resend(settings: &Settings, ids: &[&str]) -> Outcome {
    let kafka = topic::kafka(settings, "dead-letters")?;
    let letters = read(&kafka).await?;
    let (of_patient_service, of_topic): (Vec<&str>, Vec<&str>) =
        ids.iter().partition(|id| patient_dead_letters::is_one(id));
    let mut rejected: Vec<String> = Vec::new();
    if ids.is_empty() || !of_patient_service.is_empty() {
        rejected = patient_dead_letters::list(settings).await?.into_iter().map(|letter| letter.id).collect();
    }
    if let Some(unknown) = of_patient_service.iter().find(|id| !rejected.iter().any(|rejected| rejected == **id)) {
        return Err(Failure(format!("There is no dead letter {unknown:?}; nothing was sent. See just dead-letters.")));
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
    let mut sender = Sender {
        consumer: Consumer::new(kafka.clone(), DEAD_LETTERS, PARTITION),
        marks: Producer::new(kafka.clone(), DEAD_LETTERS),
        producers: HashMap::new(),
        kafka,
    };
    let mut sent = Vec::new();
    for id in chosen {
        let now = sender.send(id, &letters[&id].origin).await.map_err(|Failure(why)| {
            let done = sent.len();
            Failure(format!("{done} letters were sent again; letter {id} was not, or is not marked: {why}"))
        })?;
        println!("{id:>10}  {} -> {}", place(&letters[&id].origin), place(&now));
        sent.push((id, now));
    }
    report(settings, sent).await.and(resubmitted)
}

/// Sends the dead letter again that came from a place on the topic of events, unless that was done before.
pub(crate) async fn resend_from(settings: &Settings, partition: i32, offset: i64) -> Outcome {
    let letters = read(&topic::kafka(settings, "dead-letters")?).await?;
    let is_it = |origin: &Origin| {
        (origin.topic.as_str(), origin.partition, origin.offset) == (topic::EVENTS, partition, offset)
    };
    // The last one: a topic that was made anew begins its offsets anew.
    let found = letters.iter().rev().find(|(_, letter)| is_it(&letter.origin));
    match found {
        None => Err(Failure("It is not on the topic of dead letters yet, or not any more.".to_owned())),
        Some((_, Letter { sent: Some(now), .. })) => Err(Failure(format!("It was sent again before: {}.", place(now)))),
        Some((id, _)) => resend(settings, &[&id.to_string()]).await,
    }
}

/// The ids to send, in the order of the topic, which is that of the partitions that they came from.
fn choose(letters: &BTreeMap<i64, Letter>, ids: &[&str]) -> Outcome<Vec<i64>> {
    if ids.is_empty() {
        return Ok(letters.iter().filter(|(_, letter)| letter.sent.is_none()).map(|(id, _)| *id).collect());
    }
    let mut chosen = Vec::new();
    for text in ids {
        let found = text.parse().ok().and_then(|id| Some((id, letters.get(&id)?)));
        let Some((id, letter)) = found else {
            return Err(Failure(format!("There is no dead letter {text:?}; nothing was sent. See just dead-letters.")));
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

/// Sends letters again and marks them.
struct Sender {
    kafka: kafka::Settings,
    consumer: Consumer,
    marks: Producer,
    producers: HashMap<String, Producer>,
}

impl Sender {
    async fn send(&mut self, id: i64, origin: &Origin) -> Outcome<Origin> {
        let fetched = self.consumer.fetch(id, FETCH_BYTES, FETCH_WAIT).await?;
        let letter = fetched.records.iter().find(|record| record.offset == id);
        let letter = letter.ok_or_else(|| Failure("it is not on its topic any more".to_owned()))?.to_record().record;
        let key = letter.key.clone();
        let again = Record { headers: dead_letter::original_headers(letter.headers), timestamp: Utc::now(), ..letter };
        let topic = &origin.topic;
        let producer =
            self.producers.entry(topic.clone()).or_insert_with(|| Producer::new(self.kafka.clone(), topic.as_str()));
        if producer.partitions().await? <= origin.partition {
            return Err(Failure(format!("the topic {topic} has no partition {} any more", origin.partition)));
        }
        let offset = send_one(producer, origin.partition, again).await?;
        let now = Origin { offset, ..origin.clone() };
        let mark =
            Record { key, value: None, headers: dead_letter::resent_marker_headers(id, &now), timestamp: Utc::now() };
        send_one(&mut self.marks, PARTITION, mark).await?;
        Ok(now)
    }
}

async fn send_one(producer: &mut Producer, partition: i32, record: Record) -> Outcome<i64> {
    let result = producer.send(BTreeMap::from([(partition, vec![record])])).await.remove(&partition);
    let offsets = result.ok_or_else(|| Failure("nothing was sent".to_owned()))??;
    offsets.first().copied().ok_or_else(|| Failure("the broker tells no offset".to_owned()))
}

/// Waits until analytics has seen the letters, and tells which of them are dead again.
async fn report(settings: &Settings, sent: Vec<(i64, Origin)>) -> Outcome {
    let analytics = backend::analytics(settings)?;
    let mut last = BTreeMap::new();
    for (_, now) in sent.iter().filter(|(_, now)| now.topic == topic::EVENTS) {
        last.insert(now.partition, now.offset);
    }
    let seen = async {
        analytics.until_applied(&last, TIMEOUT, POLL_INTERVAL, |_| ()).await?;
        analytics.dead_letters().await
    };
    let known = seen.await.map_err(|Failure(why)| {
        Failure(format!("{} letters were sent again. What became of them is not known: {why}", sent.len()))
    })?;
    let mut dead = 0;
    for (id, now) in &sent {
        let is_it = |letter: &&Json| letter["partition"] == now.partition && letter["offset"] == now.offset;
        if let Some(letter) = known.iter().find(is_it) {
            dead += 1;
            println!("{id:>10}  is dead again: {}", letter["error"].as_str().unwrap_or_default());
        }
    }
    println!("{} sent again: {} accepted, {dead} dead again.", sent.len(), sent.len() - dead);
    if dead > 0 { Err(Failure("The cause is not mended.".to_owned())) } else { Ok(()) }
}

fn place(Origin { topic, partition, offset }: &Origin) -> String {
    format!("{topic} {partition}:{offset}")
}

/// Every dead letter on the topic, by its id. A rebuild of analytics' state writes letters that are there already; they
/// are left out.
async fn read(kafka: &kafka::Settings) -> Outcome<BTreeMap<i64, Letter>> {
    let mut consumer = Consumer::new(kafka.clone(), DEAD_LETTERS, PARTITION);
    let offsets = match consumer.offsets().await {
        // Analytics makes it with the first letter.
        Err(kafka::Error::UnknownTopic) => return Ok(BTreeMap::new()),
        result => result?,
    };
    let mut found = Found::default();
    let mut next = offsets.start;
    while next < offsets.end {
        let fetched = consumer.fetch(next, FETCH_BYTES, FETCH_WAIT).await?;
        if fetched.next == next {
            return Err(Failure(format!("The topic {DEAD_LETTERS} cannot be read beyond offset {next}.")));
        }
        next = fetched.next;
        fetched.records.iter().for_each(|record| found.add(&record.to_record()));
    }
    Ok(found.letters)
}

#[derive(Debug, Default)]
struct Found {
    letters: BTreeMap<i64, Letter>,
    /// The first letter with this origin and content. Only both together tell a repetition: a topic that was made anew
    /// begins its offsets anew.
    first: HashMap<(Origin, u64), i64>,
    /// Letters that were left out, and the same ones that were not.
    same: HashMap<i64, i64>,
}

impl Found {
    fn add(&mut self, RecordAndOffset { record, offset }: &RecordAndOffset) {
        match dead_letter::parse(&record.headers) {
            RecordKind::DeadLetter { origin, error } => {
                let first = *self.first.entry((origin.clone(), digest(record))).or_insert(*offset);
                if first != *offset {
                    self.same.insert(*offset, first);
                    return;
                }
                let bytes = record.value.as_ref().map_or(0, Vec::len);
                self.letters.insert(*offset, Letter { origin, error, bytes, at: record.timestamp, sent: None });
            }
            RecordKind::Resent { dead_letter: letter, sent_to } => {
                let letter = self.same.get(&letter).unwrap_or(&letter);
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

    fn found(records: &[RecordAndOffset]) -> BTreeMap<i64, Letter> {
        let mut found = Found::default();
        records.iter().for_each(|record| found.add(record));
        found.letters
    }

    #[test]
    fn a_letter_written_again_by_a_rebuild_is_one_and_keeps_its_mark() {
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
    fn a_topic_made_anew_has_letters_of_its_own() {
        let letters = found(&[letter(0, 17, "a"), letter(1, 17, "b"), record(2, Default::default(), "not ours")]);
        assert_eq!(letters.len(), 2);
    }
}
