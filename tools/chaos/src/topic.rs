//! Faults of the topic, after the audit because the system does not recover from them by itself: partitions are added, which
//! analytics must read; then the topic is deleted, created again and filled beyond the offsets of analytics, which must halt
//! and be DOWN.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::Utc;
use kafka::{Producer, Record, testing::add_partitions};
use serde_json::Value as Json;
use testbed::{Error, audit::Auditor, http::Client, patient};

/// Patients that are registered after partitions were added.
const PATIENTS: i64 = 60;
/// Time for each condition.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Records in one request for each partition.
const RECORDS: i64 = 500;

/// Injects both faults; returns what analytics did wrong.
///
/// # Errors
/// If the topic cannot be changed, or a service does not respond.
pub(crate) async fn check(auditor: &Auditor, patients: &Client) -> Result<Vec<String>, Error> {
    let Some(analytics) = auditor.analytics.first() else {
        return Ok(vec!["there is no analytics-service".to_owned()]);
    };
    let kafka = kafka::Settings { deadline: TIMEOUT, ..auditor.kafka.clone() };
    let mut wrong = Vec::new();
    let added = double_partitions(&kafka, &auditor.topic, patients, analytics).await?;
    wrong.extend(added.map(|why| format!("partitions were added: {why}")));
    let refilled = refill(&kafka, &auditor.topic, analytics).await?;
    wrong.extend(refilled.map(|why| format!("the topic was deleted and filled again: {why}")));
    Ok(wrong)
}

/// Doubles the partitions, and registers patients. Analytics must count each of them.
async fn double_partitions(
    kafka: &kafka::Settings,
    topic: &str,
    patients: &Client,
    analytics: &Client,
) -> Result<Option<String>, Error> {
    let before = summary(analytics).await?;
    let count = kafka::partitions(kafka, topic).await? * 2;
    add_partitions(kafka, topic, count).await?;
    for _ in 0..PATIENTS {
        let patient = patient::unique_body("Added Later");
        let response = patients.post("/patients", &patient).await?;
        if response.status != 201 {
            return Ok(Some(format!("a registration got {} {}", response.status, response.text())));
        }
    }
    let expected = before["created"].as_i64().unwrap_or_default() + PATIENTS;
    let is_read = |summary: &Json| {
        let partitions = summary["partitions"].as_array().map_or(0, Vec::len);
        summary["created"] == expected && i32::try_from(partitions) == Ok(count)
    };
    Ok(until(analytics, is_read)
        .await?
        .map(|last| format!("{expected} created in {count} partitions expected: {last}")))
}

/// Deletes the topic, creates it again and fills it beyond every offset of analytics. Analytics must halt every partition, be
/// DOWN, and keep its counts.
async fn refill(kafka: &kafka::Settings, topic: &str, analytics: &Client) -> Result<Option<String>, Error> {
    let before = summary(analytics).await?;
    let partitions = kafka::partitions(kafka, topic).await?;
    kafka::delete_topic(kafka, topic).await?;
    let end = Instant::now() + TIMEOUT;
    // The broker deletes the topic some time after its response, and the relay may create it before us.
    while !matches!(kafka::create_topic(kafka, topic, partitions).await, Ok(true)) {
        if kafka::partitions(kafka, topic).await.is_ok_and(|now| now != partitions) {
            break;
        }
        if Instant::now() > end {
            return Err(Error::new("the topic could not be created again"));
        }
        smol::Timer::after(POLL_INTERVAL).await;
    }
    let mut producer = Producer::new(kafka.clone(), topic);
    let offsets = before["partitions"].as_array().into_iter().flatten();
    let largest = offsets.filter_map(|partition| partition["appliedOffset"].as_i64()).max().unwrap_or_default();
    let record = Record { key: None, value: Some(b"anew".to_vec()), headers: Vec::new(), timestamp: Utc::now() };
    let partitions = producer.partitions().await?;
    for _ in 0..=largest / RECORDS {
        let batch = vec![record.clone(); usize::try_from(RECORDS).unwrap_or_default()];
        let batches: BTreeMap<_, _> = (0..partitions).map(|partition| (partition, batch.clone())).collect();
        for result in producer.send(batches).await.into_values() {
            result?;
        }
    }
    let is_halted = |summary: &Json| {
        let mut partitions = summary["partitions"].as_array().into_iter().flatten();
        partitions.all(|partition| partition["halted"].is_string())
    };
    if let Some(last) = until(analytics, is_halted).await? {
        return Ok(Some(format!("analytics has not halted: {last}")));
    }
    let readiness = analytics.get("/actuator/health/readiness").await?;
    let after = summary(analytics).await?;
    let counts = |summary: &Json| ["activePatients", "created", "updated", "deleted"].map(|name| summary[name].clone());
    if readiness.status != 503 {
        return Ok(Some(format!("analytics is ready: {}", readiness.text())));
    }
    Ok((counts(&before) != counts(&after)).then(|| format!("counts have changed from {before} to {after}")))
}

async fn summary(analytics: &Client) -> Result<Json, Error> {
    Ok(analytics.get("/analytics/summary").await?.json())
}

/// Waits until the summary is as expected; returns the last one if it is not in time.
async fn until(analytics: &Client, is_expected: impl Fn(&Json) -> bool) -> Result<Option<Json>, Error> {
    let end = Instant::now() + TIMEOUT;
    loop {
        let summary = summary(analytics).await?;
        if is_expected(&summary) {
            return Ok(None);
        }
        if Instant::now() > end {
            return Ok(Some(summary));
        }
        smol::Timer::after(POLL_INTERVAL).await;
    }
}
