//! What is done to the topic once the audit is over, because nothing heals it by itself: partitions are added, which
//! analytics has to read; then the topic is deleted and filled again past the offsets that analytics has, which has to halt
//! it, loudly.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::Utc;
use kafka::{Producer, Record, testing::add_partitions};
use serde_json::{Value as Json, json};
use testbed::{StartError, audit::Places, http::Client};
use uuid::Uuid;

/// Patients that are registered once there are more partitions.
const PATIENTS: i64 = 60;
/// Time for each condition.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Records that one request fills a partition with.
const RECORDS: i64 = 500;

/// Does both; gives what was not as it must be.
///
/// # Errors
/// If the topic cannot be changed, or a service does not answer.
pub(crate) async fn check(places: &Places, patients: &Client) -> Result<Vec<String>, StartError> {
    let Some(analytics) = places.analytics.first() else { return Ok(vec!["there is no analytics-service".to_owned()]) };
    let kafka = kafka::Settings { deadline: TIMEOUT, ..places.kafka.clone() };
    let mut wrong = Vec::new();
    let added = more_partitions(&kafka, &places.topic, patients, analytics).await?;
    wrong.extend(added.map(|why| format!("partitions were added: {why}")));
    let refilled = refill(&kafka, &places.topic, analytics).await?;
    wrong.extend(refilled.map(|why| format!("the topic was deleted and filled again: {why}")));
    Ok(wrong)
}

/// Doubles the partitions, and registers patients. Analytics has to count each of them.
async fn more_partitions(
    kafka: &kafka::Settings,
    topic: &str,
    patients: &Client,
    analytics: &Client,
) -> Result<Option<String>, StartError> {
    let before = summary(analytics).await?;
    let count = kafka::partitions(kafka, topic).await.map_err(failed)? * 2;
    add_partitions(kafka, topic, count).await.map_err(failed)?;
    for number in 0..PATIENTS {
        let patient = json!({
            "name": "Added Later", "email": format!("later-{}-{number}@example.org", Uuid::now_v7()),
            "address": "1 Main Street", "dateOfBirth": "1990-12-31",
        });
        let answer = patients.post("/patients", &patient).await.map_err(failed)?;
        if answer.status != 201 {
            return Ok(Some(format!("a registration got {} {}", answer.status, answer.text())));
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

/// Deletes the topic, makes it anew and fills it past every offset that analytics has. Analytics has to halt every
/// partition, be DOWN, and keep its counts.
async fn refill(kafka: &kafka::Settings, topic: &str, analytics: &Client) -> Result<Option<String>, StartError> {
    let before = summary(analytics).await?;
    let partitions = kafka::partitions(kafka, topic).await.map_err(failed)?;
    kafka::delete_topic(kafka, topic).await.map_err(failed)?;
    let end = Instant::now() + TIMEOUT;
    // The broker deletes it a little after it said so, and the relay may make it before us.
    while !matches!(kafka::create_topic(kafka, topic, partitions).await, Ok(true)) {
        if kafka::partitions(kafka, topic).await.is_ok_and(|now| now != partitions) {
            break;
        }
        if Instant::now() > end {
            return Err(StartError::new("the topic could not be made again"));
        }
        smol::Timer::after(POLL_INTERVAL).await;
    }
    let mut producer = Producer::new(kafka.clone(), topic);
    let offsets = before["partitions"].as_array().into_iter().flatten();
    let largest = offsets.filter_map(|partition| partition["appliedOffset"].as_i64()).max().unwrap_or_default();
    let record = Record { key: None, value: Some(b"anew".to_vec()), headers: Vec::new(), timestamp: Utc::now() };
    let partitions = producer.partitions().await.map_err(failed)?;
    for _ in 0..=largest / RECORDS {
        let batch = vec![record.clone(); usize::try_from(RECORDS).unwrap_or_default()];
        let batches: BTreeMap<_, _> = (0..partitions).map(|partition| (partition, batch.clone())).collect();
        for result in producer.send(batches).await.into_values() {
            result.map_err(failed)?;
        }
    }
    let is_halted = |summary: &Json| {
        let mut partitions = summary["partitions"].as_array().into_iter().flatten();
        partitions.all(|partition| partition["halted"].is_string())
    };
    if let Some(last) = until(analytics, is_halted).await? {
        return Ok(Some(format!("analytics reads on: {last}")));
    }
    let readiness = analytics.get("/actuator/health/readiness").await.map_err(failed)?;
    let after = summary(analytics).await?;
    let counts = |summary: &Json| ["activePatients", "created", "updated", "deleted"].map(|name| summary[name].clone());
    if readiness.status != 503 {
        return Ok(Some(format!("analytics is ready: {}", readiness.text())));
    }
    Ok((counts(&before) != counts(&after)).then(|| format!("counts have changed from {before} to {after}")))
}

async fn summary(analytics: &Client) -> Result<Json, StartError> {
    Ok(analytics.get("/analytics/summary").await.map_err(failed)?.json())
}

/// Waits until the summary is as it should be; gives the last one if it is not in time.
async fn until(analytics: &Client, is_right: impl Fn(&Json) -> bool) -> Result<Option<Json>, StartError> {
    let end = Instant::now() + TIMEOUT;
    loop {
        let summary = summary(analytics).await?;
        if is_right(&summary) {
            return Ok(None);
        }
        if Instant::now() > end {
            return Ok(Some(summary));
        }
        smol::Timer::after(POLL_INTERVAL).await;
    }
}

fn failed(error: impl std::fmt::Display) -> StartError {
    StartError::new(error.to_string())
}
