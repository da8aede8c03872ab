//! Finds lost data: compares the responses that clients got with PostgreSQL, the topic, billing and analytics.
//!
//! Clients fill [`Acknowledged`] while they write. After the faults, [`Auditor::until_drained`] waits until the system has
//! caught up, and [`Auditor::audit`] reads all data and compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use codec::event::ReceivedEvent;
use config::{HostPorts, Value as _};
use kafka::Consumer;
use kafka::partitioner::{key_hash, of_hash};
use sqlx::Row as _;

use crate::{
    Error,
    analytics::own_summary,
    http::Client,
    sql::rows,
    system::{BackingServices, System},
};

mod acknowledged;
mod snapshot;

pub use acknowledged::Acknowledged;
pub use snapshot::Report;
use snapshot::Snapshot;

/// How often a condition is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The maximum bytes of a fetch, and how long it waits.
const FETCH: (i32, Duration) = (1 << 18, Duration::from_millis(100));
/// Deadline of a call to the broker; long, because the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// Reads the data of a system: the addresses of its databases, its topic and its analytics-services.
#[derive(Clone, Debug)]
pub struct Auditor {
    /// The URL of patient-service's database.
    pub patients_database: String,
    /// The URL of billing-service's database.
    pub billing_database: String,
    /// Settings of a client of the broker.
    pub kafka: kafka::Settings,
    /// The topic of patient events.
    pub topic: String,
    /// Every analytics-service; several share the partitions.
    pub analytics: Vec<Client>,
}

impl Auditor {
    /// An auditor of a test's system.
    ///
    /// # Panics
    /// If the address of the system's broker is invalid.
    pub fn of(system: &System) -> Self {
        let BackingServices { patients_database, billing_database, kafka, topic } = system.backing_services().clone();
        let analytics = vec![system.analytics.client()];
        let mut auditor = Self::at(patients_database, billing_database, &kafka, &topic, analytics)
            .expect("the services use the same address");
        auditor.kafka.security = system.kafka_security().expect("the services use the same files");
        auditor
    }

    /// An auditor of a system with these addresses.
    ///
    /// # Errors
    /// If the broker's address is invalid.
    pub fn at(
        patients_database: String,
        billing_database: String,
        kafka: &str,
        topic: &str,
        analytics: Vec<Client>,
    ) -> Result<Self, Error> {
        let bootstrap = HostPorts::parse(kafka).map_err(Error::new)?;
        let kafka =
            kafka::Settings { bootstrap, deadline: DEADLINE, client_id: "audit", security: kafka::Security::default() };
        Ok(Self { patients_database, billing_database, kafka, topic: topic.to_owned(), analytics })
    }

    /// Waits until the system has caught up: no event in the outbox, no billing task, and no record that analytics has not
    /// applied. Returns how long that took.
    ///
    /// # Errors
    /// After `limit`; the error says what is pending.
    pub async fn until_drained(&self, limit: Duration) -> Result<Duration, Error> {
        let started = Instant::now();
        loop {
            let pending = match self.pending().await {
                Ok(pending) if pending.is_empty() => return Ok(started.elapsed()),
                Ok(pending) => pending,
                Err(error) => error.to_string(),
            };
            if started.elapsed() > limit {
                return Err(Error::new(format!("not drained after {limit:?}: {pending}")));
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    async fn pending(&self) -> Result<String, Error> {
        let counts = "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM billing_tasks)";
        let rows = rows(&self.patients_database, counts, |row| Ok((row.try_get(0)?, row.try_get(1)?))).await?;
        if let Some((events, tasks)) = rows.first().filter(|&counts| *counts != (0_i64, 0_i64)) {
            return Ok(format!("{events} events in the outbox, {tasks} billing tasks"));
        }
        let mut applied = BTreeMap::new();
        for analytics in &self.analytics {
            let summary = own_summary(analytics).await?;
            for partition in summary["partitions"].as_array().into_iter().flatten() {
                applied.extend(partition["partition"].as_i64().zip(partition["appliedOffset"].as_i64()));
            }
        }
        for partition in 0..self.partitions().await? {
            let offsets = self.consumer(partition).offsets().await?;
            let next = applied.get(&i64::from(partition)).map_or(0, |applied| applied + 1);
            if next < offsets.end {
                return Ok(format!("analytics lags by {} records of partition {partition}", offsets.end - next));
            }
        }
        Ok(String::new())
    }

    /// Compares everything. The system must be drained, and no client may write.
    ///
    /// # Errors
    /// If data cannot be read.
    pub async fn audit(&self, acknowledged: &Acknowledged) -> Result<Report, Error> {
        let mut snapshot = Snapshot::default();
        let patients = "SELECT id, version FROM patients";
        let patients = rows(&self.patients_database, patients, |row| Ok((row.try_get(0)?, row.try_get(1)?)));
        snapshot.patients = patients.await?.into_iter().collect();
        let dead_letters = "SELECT count(*) FROM outbox_dead_letters";
        snapshot.dead_lettered_events =
            rows(&self.patients_database, dead_letters, |row| row.try_get(0)).await?.iter().sum();
        let accounts = "SELECT patient_id, status = 'ACTIVE' FROM accounts";
        let accounts = rows(&self.billing_database, accounts, |row| Ok((row.try_get(0)?, row.try_get(1)?)));
        snapshot.accounts = accounts.await?.into_iter().collect();
        let entries = "SELECT patient_id, transaction_id, CASE type WHEN 'PAYMENT' THEN -amount ELSE amount END
            FROM transactions";
        let entries =
            rows(&self.billing_database, entries, |row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?)));
        snapshot.entries = entries.await?.into_iter().collect();
        let unbalanced = "SELECT patient_id FROM balances FULL JOIN (
                SELECT patient_id, currency, sum(CASE type WHEN 'PAYMENT' THEN -amount ELSE amount END) AS sum
                FROM transactions GROUP BY patient_id, currency
            ) ledger USING (patient_id, currency) WHERE amount IS DISTINCT FROM sum";
        snapshot.unbalanced = rows(&self.billing_database, unbalanced, |row| row.try_get(0)).await?;
        self.read_topic(&mut snapshot).await?;
        for analytics in &self.analytics {
            let summary = own_summary(analytics).await?;
            for (sum, name) in snapshot.analytics.iter_mut().zip(["activePatients", "created", "updated", "deleted"]) {
                *sum += summary[name].as_i64().unwrap_or_default();
            }
        }
        Ok(snapshot.compare(&acknowledged.lock()))
    }

    async fn read_topic(&self, snapshot: &mut Snapshot) -> Result<(), Error> {
        let partitions = self.partitions().await?;
        for partition in 0..partitions {
            let mut consumer = self.consumer(partition);
            let offsets = consumer.offsets().await?;
            let (mut next, mut records) = (offsets.start, 0);
            let mut patients = BTreeSet::new();
            while next < offsets.end {
                let fetched = consumer.fetch(next, FETCH.0, FETCH.1).await?;
                for record in fetched.records.iter() {
                    records += 1;
                    let event = ReceivedEvent::decode(record.value.unwrap_or_default());
                    let Some((patient_id, version, kind)) =
                        event.ok().and_then(|event| Some((event.patient_id, event.version?, event.kind)))
                    else {
                        snapshot.others += 1;
                        continue;
                    };
                    if of_hash(key_hash(patient_id.to_string().as_bytes()), partitions) != partition {
                        snapshot.wrong_partition.insert(patient_id);
                    }
                    patients.insert(patient_id);
                    let history = snapshot.histories.entry(patient_id).or_default();
                    if history.events.iter().any(|(known, _)| *known == version) {
                        history.duplicates += 1;
                    } else {
                        history.events.push((version, kind));
                    }
                }
                next = fetched.next;
            }
            // Of no other record is an offset missing than of one that compaction has deleted.
            if records < offsets.end - offsets.start {
                for (_, history) in snapshot.histories.iter_mut().filter(|(id, _)| patients.contains(*id)) {
                    history.is_compacted = true;
                }
            }
        }
        Ok(())
    }

    async fn partitions(&self) -> Result<i32, Error> {
        match kafka::partitions(&self.kafka, &self.topic).await {
            // No event was ever published.
            Err(kafka::Error::UnknownTopic) => Ok(0),
            partitions => Ok(partitions?),
        }
    }

    fn consumer(&self, partition: i32) -> Consumer {
        Consumer::new(self.kafka.clone(), &self.topic, partition)
    }
}
