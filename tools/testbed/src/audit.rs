//! Whether anything was lost: what clients were told, against what PostgreSQL, the topic, billing and analytics hold.
//!
//! [`Acknowledged`] is filled by clients while they write. When the faults are over, [`Places::until_drained`] waits for
//! the system to catch up by itself, and [`Places::audit`] compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use codec::event::{EventKind, ReceivedEvent};
use config::{HostPorts, Value as _};
use kafka::Consumer;
use kafka::partitioner::{key_hash, of_hash};
use serde_json::Value as Json;
use sqlx::Row as _;
use uuid::Uuid;

use crate::{
    StartError,
    http::Client,
    sql::rows,
    system::{Ground, System},
};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes that one fetch asks for, and how long it waits.
const FETCH: (i32, Duration) = (1 << 18, Duration::from_millis(100));
/// Time for a call to the broker: an audit is in no hurry.
const DEADLINE: Duration = Duration::from_secs(30);
/// Differences of one sort that a report shows.
const SHOWN: usize = 5;

/// What clients were told, so that it must be there in the end. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    patients: Arc<Mutex<BTreeMap<Uuid, Told>>>,
}

/// What clients were told of one patient.
#[derive(Clone, Debug, Default)]
struct Told {
    /// The newest version that an answer told of.
    version: i64,
    /// A deletion was sent: it may have been done although nobody was told.
    deleting: bool,
    deleted: bool,
    /// Entries of the ledger: what each adds to what the patient owes, in minor units.
    entries: BTreeMap<String, i64>,
}

impl Acknowledged {
    /// A client was told that a patient has this version: by a creation (1) or by the entity tag of a change.
    pub fn stored(&self, patient_id: Uuid, version: i64) {
        let mut patients = self.lock();
        let told = patients.entry(patient_id).or_default();
        told.version = told.version.max(version);
    }

    /// A client is about to send a deletion, of which it may never hear.
    pub fn deleting(&self, patient_id: Uuid) {
        self.lock().entry(patient_id).or_default().deleting = true;
    }

    /// A client was told that the patient is gone.
    pub fn deleted(&self, patient_id: Uuid) {
        self.lock().entry(patient_id).or_default().deleted = true;
    }

    /// A client was told that a transaction is in the ledger. `owed` is what it adds to what the patient owes: negative
    /// for a payment.
    pub fn entered(&self, patient_id: Uuid, transaction_id: impl Into<String>, owed: i64) {
        self.lock().entry(patient_id).or_default().entries.insert(transaction_id.into(), owed);
    }

    /// How many patients clients were told of.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Told>> {
        self.patients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the parts of a system keep what they know.
#[derive(Clone, Debug)]
pub struct Places {
    /// The URL of patient-service's database.
    pub patients_database: String,
    /// The URL of billing-service's database.
    pub billing_database: String,
    /// How to reach the broker.
    pub kafka: kafka::Settings,
    /// The topic of patient events.
    pub topic: String,
    /// Every analytics-service, if they share the partitions.
    pub analytics: Vec<Client>,
}

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Patients in PostgreSQL.
    pub patients: usize,
    /// Patients that are gone.
    pub deleted: usize,
    /// Events on the topic, each counted once.
    pub events: usize,
    /// Further deliveries of events on the topic.
    pub duplicates: usize,
    /// Records on the topic that are no events of ours.
    pub others: usize,
    /// Entries in ledgers.
    pub entries: usize,
    /// Patients that clients were told of.
    pub acknowledged: usize,
    /// What is wrong; empty if nothing is.
    pub losses: Vec<String>,
}

impl Report {
    /// Gives the report if nothing is wrong.
    ///
    /// # Panics
    /// If something is, with the whole report.
    pub fn expect_no_loss(self) -> Self {
        assert!(self.losses.is_empty(), "{self}");
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { patients, deleted, events, duplicates, others, entries, acknowledged, losses } = self;
        write!(
            f,
            "{patients} patients, {deleted} deleted, {events} events, {duplicates} delivered again, {others} other \
             records, {entries} ledger entries; clients were told of {acknowledged} patients"
        )?;
        losses.iter().try_for_each(|loss| write!(f, "\n  LOST: {loss}"))
    }
}

/// A patient as the topic tells its story.
#[derive(Clone, Debug, Default)]
struct Story {
    /// The version and the kind of each event, in the order in which it was first seen.
    events: Vec<(i64, Option<EventKind>)>,
    again: usize,
}

/// Everything that is compared.
#[derive(Debug, Default)]
struct Findings {
    /// Patients with their versions.
    patients: BTreeMap<Uuid, i64>,
    /// Accounts; true for active ones.
    accounts: BTreeMap<Uuid, bool>,
    entries: BTreeMap<(Uuid, String), i64>,
    /// Balances and sums of ledgers that differ.
    unbalanced: Vec<Uuid>,
    refused_events: i64,
    stories: BTreeMap<Uuid, Story>,
    misplaced: BTreeSet<Uuid>,
    others: usize,
    /// active, created, updated, deleted.
    analytics: [i64; 4],
}

impl Places {
    /// The places of a system of a test.
    ///
    /// # Panics
    /// If the system's broker has no address.
    pub fn of(system: &System) -> Self {
        let Ground { patients_database, billing_database, kafka, topic } = system.ground().clone();
        let analytics = vec![system.analytics.client()];
        Self::at(patients_database, billing_database, &kafka, &topic, analytics).expect("the system runs with it")
    }

    /// The places of a system that somebody else has started.
    ///
    /// # Errors
    /// If the broker's address is not valid.
    pub fn at(
        patients_database: String,
        billing_database: String,
        kafka: &str,
        topic: &str,
        analytics: Vec<Client>,
    ) -> Result<Self, StartError> {
        let bootstrap = HostPorts::parse(kafka).map_err(StartError::new)?;
        let kafka = kafka::Settings { bootstrap, deadline: DEADLINE, client_id: "audit" };
        Ok(Self { patients_database, billing_database, kafka, topic: topic.to_owned(), analytics })
    }

    /// Waits until nothing is on its way any more: no event in the outbox, no task for billing, no record that analytics
    /// has not applied. Gives how long that took.
    ///
    /// # Errors
    /// If it takes longer than `limit`; the error says what is still on its way.
    pub async fn until_drained(&self, limit: Duration) -> Result<Duration, StartError> {
        let started = Instant::now();
        loop {
            let left = match self.on_the_way().await {
                Ok(left) if left.is_empty() => return Ok(started.elapsed()),
                Ok(left) => left,
                Err(error) => error.to_string(),
            };
            if started.elapsed() > limit {
                return Err(StartError::new(format!("not drained after {limit:?}: {left}")));
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    async fn on_the_way(&self) -> Result<String, StartError> {
        let waiting = "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM billing_tasks)";
        let rows = rows(&self.patients_database, waiting, |row| Ok((row.try_get(0)?, row.try_get(1)?))).await?;
        if let Some((events, tasks)) = rows.first().filter(|&counts| *counts != (0_i64, 0_i64)) {
            return Ok(format!("{events} events in the outbox, {tasks} tasks for billing"));
        }
        let mut applied = BTreeMap::new();
        for analytics in &self.analytics {
            let summary = summary(analytics).await?;
            for partition in summary["partitions"].as_array().into_iter().flatten() {
                applied.extend(partition["partition"].as_i64().zip(partition["appliedOffset"].as_i64()));
            }
        }
        for partition in 0..self.partitions().await? {
            let offsets = self.consumer(partition).offsets().await.map_err(failed)?;
            let next = applied.get(&i64::from(partition)).map_or(0, |applied| applied + 1);
            if next < offsets.end {
                return Ok(format!("{} records of partition {partition} at analytics", offsets.end - next));
            }
        }
        Ok(String::new())
    }

    /// Compares everything. To be called when the system is drained and nobody writes.
    ///
    /// # Errors
    /// If a part cannot be asked.
    pub async fn audit(&self, acknowledged: &Acknowledged) -> Result<Report, StartError> {
        let mut findings = Findings::default();
        let patients = "SELECT id, version FROM patients";
        let patients = rows(&self.patients_database, patients, |row| Ok((row.try_get(0)?, row.try_get(1)?)));
        findings.patients = patients.await?.into_iter().collect();
        let refused = "SELECT count(*) FROM outbox_dead_letters";
        findings.refused_events = rows(&self.patients_database, refused, |row| row.try_get(0)).await?.iter().sum();
        let accounts = "SELECT patient_id, status = 'ACTIVE' FROM accounts";
        let accounts = rows(&self.billing_database, accounts, |row| Ok((row.try_get(0)?, row.try_get(1)?)));
        findings.accounts = accounts.await?.into_iter().collect();
        let entries = "SELECT patient_id, transaction_id, CASE type WHEN 'PAYMENT' THEN -amount ELSE amount END
            FROM transactions";
        let entries =
            rows(&self.billing_database, entries, |row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?)));
        findings.entries = entries.await?.into_iter().collect();
        let unbalanced = "SELECT patient_id FROM balances FULL JOIN (
                SELECT patient_id, currency, sum(CASE type WHEN 'PAYMENT' THEN -amount ELSE amount END) AS sum
                FROM transactions GROUP BY patient_id, currency
            ) ledger USING (patient_id, currency) WHERE amount IS DISTINCT FROM sum";
        findings.unbalanced = rows(&self.billing_database, unbalanced, |row| row.try_get(0)).await?;
        self.read_topic(&mut findings).await?;
        for analytics in &self.analytics {
            let summary = summary(analytics).await?;
            for (sum, name) in findings.analytics.iter_mut().zip(["activePatients", "created", "updated", "deleted"]) {
                *sum += summary[name].as_i64().unwrap_or_default();
            }
        }
        Ok(findings.compare(&acknowledged.lock()))
    }

    async fn read_topic(&self, findings: &mut Findings) -> Result<(), StartError> {
        let partitions = self.partitions().await?;
        for partition in 0..partitions {
            let mut consumer = self.consumer(partition);
            let offsets = consumer.offsets().await.map_err(failed)?;
            let mut next = offsets.start;
            while next < offsets.end {
                let fetched = consumer.fetch(next, FETCH.0, FETCH.1).await.map_err(failed)?;
                for record in fetched.records.iter() {
                    let event = ReceivedEvent::decode(record.value.unwrap_or_default());
                    let Some((patient_id, version, kind)) =
                        event.ok().and_then(|event| Some((event.patient_id, event.version?, event.kind)))
                    else {
                        findings.others += 1;
                        continue;
                    };
                    if of_hash(key_hash(patient_id.to_string().as_bytes()), partitions) != partition {
                        findings.misplaced.insert(patient_id);
                    }
                    let story = findings.stories.entry(patient_id).or_default();
                    if story.events.iter().any(|(seen, _)| *seen == version) {
                        story.again += 1;
                    } else {
                        story.events.push((version, kind));
                    }
                }
                next = fetched.next;
            }
        }
        Ok(())
    }

    async fn partitions(&self) -> Result<i32, StartError> {
        match kafka::partitions(&self.kafka, &self.topic).await {
            // Nothing has ever been published.
            Err(kafka::Error::UnknownTopic) => Ok(0),
            partitions => partitions.map_err(failed),
        }
    }

    fn consumer(&self, partition: i32) -> Consumer {
        Consumer::new(self.kafka.clone(), &self.topic, partition)
    }
}

impl Findings {
    fn compare(&self, told: &BTreeMap<Uuid, Told>) -> Report {
        let mut losses = Vec::new();
        let mut lost = |what: &str, whom: Vec<String>| {
            if !whom.is_empty() {
                let more = whom.len().saturating_sub(SHOWN);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                losses.push(format!("{what}: {}{more}", whom[..whom.len().min(SHOWN)].join(", ")));
            }
        };
        let found = |id: &Uuid| self.patients.get(id).copied();

        // What clients were told.
        let missing = told.iter().filter(|(id, told)| told.version > 0 && !told.deleting && found(id).is_none());
        lost("acknowledged patients are not in PostgreSQL", names(missing));
        let older = told.iter().filter(|(id, told)| found(id).is_some_and(|version| version < told.version));
        lost("acknowledged changes are not in PostgreSQL", names(older));
        let undead = told.iter().filter(|(id, told)| told.deleted && found(id).is_some());
        lost("deleted patients are in PostgreSQL", names(undead));
        let entries = told.iter().flat_map(|(id, told)| told.entries.iter().map(move |(name, owed)| (*id, name, owed)));
        let unentered = entries.filter(|(id, name, owed)| self.entries.get(&(*id, (*name).clone())) != Some(owed));
        let unentered = unentered.map(|(id, name, _)| format!("{id} {name}"));
        lost("acknowledged transactions are not in the ledger, or not with their amount", unentered.collect());

        // Billed once: the account's key is the patient, so that a second one cannot be.
        let unbilled = self.patients.keys().filter(|id| self.accounts.get(id) != Some(&true));
        lost("patients have no active billing account", unbilled.map(Uuid::to_string).collect());
        let overbilled = self.accounts.iter().filter(|(id, active)| **active && found(id).is_none());
        lost("active billing accounts have no patient", names(overbilled));
        lost("balances are not the sum of their ledger", self.unbalanced.iter().map(Uuid::to_string).collect());

        // Told once and in order.
        let out_of_order = self.stories.iter().filter(|(_, story)| !story.is_in_order());
        let out_of_order = out_of_order.map(|(id, story)| format!("{id} {:?}", story.versions()));
        lost("versions are not in order on the topic", out_of_order.collect());
        let untold = self.patients.iter().filter(|(id, version)| {
            self.stories.get(*id).is_none_or(|story| story.last() != Some(**version) || story.ends_deleted())
        });
        lost("patients are not on the topic as they are in PostgreSQL", names(untold));
        let overtold = self.stories.iter().filter(|(id, story)| !story.ends_deleted() && found(id).is_none());
        lost("patients of the topic are not in PostgreSQL", names(overtold));
        lost("events are on a partition that is not their key's", self.misplaced.iter().map(Uuid::to_string).collect());
        if self.refused_events > 0 {
            lost("events were refused by the broker", vec![self.refused_events.to_string()]);
        }

        // Counted once.
        let of = |wanted: EventKind| {
            let kinds = self.stories.values().flat_map(|story| &story.events);
            kinds.filter(|(_, kind)| *kind == Some(wanted)).count() as i64
        };
        let expected =
            [self.patients.len() as i64, of(EventKind::Created), of(EventKind::Updated), of(EventKind::Deleted)];
        if self.analytics != expected {
            let counted = format!("{:?} instead of {expected:?}", self.analytics);
            lost("analytics counts (active, created, updated, deleted)", vec![counted]);
        }

        Report {
            patients: self.patients.len(),
            deleted: self.stories.values().filter(|story| story.ends_deleted()).count(),
            events: self.stories.values().map(|story| story.events.len()).sum(),
            duplicates: self.stories.values().map(|story| story.again).sum(),
            others: self.others,
            entries: self.entries.len(),
            acknowledged: told.len(),
            losses,
        }
    }
}

impl Story {
    fn versions(&self) -> Vec<i64> {
        self.events.iter().map(|(version, _)| *version).collect()
    }

    fn last(&self) -> Option<i64> {
        self.events.last().map(|(version, _)| *version)
    }

    fn ends_deleted(&self) -> bool {
        matches!(self.events.last(), Some((_, Some(EventKind::Deleted))))
    }

    /// Whether each version was first seen right after the one before it, and a deletion ends the story.
    fn is_in_order(&self) -> bool {
        let deleted_before = |kind: &Option<EventKind>| *kind == Some(EventKind::Deleted);
        let before_last = self.events.split_last().map_or(&[][..], |(_, before)| before);
        self.versions().into_iter().eq(1..=self.events.len() as i64)
            && !before_last.iter().any(|(_, kind)| deleted_before(kind))
    }
}

fn names<'a, T: 'a>(found: impl Iterator<Item = (&'a Uuid, T)>) -> Vec<String> {
    found.map(|(id, _)| id.to_string()).collect()
}

fn failed(error: impl fmt::Display) -> StartError {
    StartError::new(error.to_string())
}

async fn summary(analytics: &Client) -> Result<Json, StartError> {
    let answer = analytics.get("/analytics/summary").await.map_err(failed)?;
    if answer.status != 200 {
        return Err(StartError::new(format!("analytics answers {}", answer.status)));
    }
    Ok(answer.json())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: (i64, Option<EventKind>) = (1, Some(EventKind::Created));
    const UPDATED: (i64, Option<EventKind>) = (2, Some(EventKind::Updated));

    fn story(events: &[(i64, Option<EventKind>)]) -> Story {
        Story { events: events.to_vec(), again: 0 }
    }

    /// Three patients, the last of them deleted, all well.
    fn well() -> (Findings, Acknowledged, [Uuid; 3]) {
        let ids @ [one, two, gone] = [1, 2, 3].map(Uuid::from_u128);
        let findings = Findings {
            patients: [(one, 1), (two, 2)].into(),
            accounts: [(one, true), (two, true), (gone, false)].into(),
            entries: [((one, "t-1".to_owned()), 100)].into(),
            stories: [
                (one, story(&[CREATED])),
                (two, story(&[CREATED, UPDATED])),
                (gone, story(&[CREATED, (2, Some(EventKind::Deleted))])),
            ]
            .into(),
            analytics: [2, 3, 1, 1],
            ..Findings::default()
        };
        let told = Acknowledged::default();
        told.stored(one, 1);
        told.entered(one, "t-1", 100);
        told.stored(two, 2);
        told.stored(gone, 1);
        told.deleting(gone);
        told.deleted(gone);
        (findings, told, ids)
    }

    fn losses(change: impl FnOnce(&mut Findings, &Acknowledged, [Uuid; 3])) -> String {
        let (mut findings, told, ids) = well();
        change(&mut findings, &told, ids);
        let report = findings.compare(&told.lock());
        report.losses.join("\n")
    }

    #[test]
    fn nothing_is_lost_where_all_agree() {
        assert_eq!(losses(|_, _, _| ()), "");
    }

    #[test]
    fn every_sort_of_loss_is_told() {
        let told = |expected: &str, change: fn(&mut Findings, &Acknowledged, [Uuid; 3])| {
            let losses = losses(change);
            assert!(losses.contains(expected), "{expected:?} in {losses:?}");
        };
        told("acknowledged patients are not in PostgreSQL", |_, told, _| told.stored(Uuid::from_u128(4), 1));
        told("acknowledged changes are not in PostgreSQL", |_, told, [one, ..]| told.stored(one, 2));
        told("deleted patients are in PostgreSQL", |_, told, [one, ..]| told.deleted(one));
        told("not in the ledger, or not with their amount", |_, told, [one, ..]| told.entered(one, "t-1", 101));
        told("not in the ledger, or not with their amount", |_, told, [one, ..]| told.entered(one, "t-2", 100));
        told("patients have no active billing account", |found, _, [one, ..]| {
            found.accounts.insert(one, false);
        });
        told("active billing accounts have no patient", |found, _, [.., gone]| {
            found.accounts.insert(gone, true);
        });
        told("balances are not the sum", |found, _, [one, ..]| found.unbalanced.push(one));
        told("versions are not in order", |found, _, [_, two, _]| {
            found.stories.insert(two, story(&[UPDATED, CREATED]));
        });
        told("versions are not in order", |found, _, [_, two, _]| {
            found.stories.insert(two, story(&[CREATED, (2, Some(EventKind::Deleted)), (3, Some(EventKind::Updated))]));
        });
        told("not on the topic as they are in PostgreSQL", |found, _, [_, two, _]| {
            found.stories.insert(two, story(&[CREATED]));
        });
        told("patients of the topic are not in PostgreSQL", |found, _, [one, ..]| {
            found.patients.remove(&one);
        });
        told("a partition that is not their key's", |found, _, [one, ..]| {
            found.misplaced.insert(one);
        });
        told("refused by the broker", |found, _, _| found.refused_events = 1);
        told("analytics counts", |found, _, _| found.analytics = [3, 3, 1, 1]);
    }

    #[test]
    fn a_deletion_that_nobody_heard_of_is_no_loss() {
        let unheard = losses(|found, told, [one, ..]| {
            told.deleting(one);
            found.patients.remove(&one);
            found.accounts.insert(one, false);
            found.stories.insert(one, story(&[CREATED, (2, Some(EventKind::Deleted))]));
            found.analytics = [1, 3, 1, 2];
        });
        assert_eq!(unheard, "");
    }
}
