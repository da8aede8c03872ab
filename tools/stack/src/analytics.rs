//! A client of analytics-service.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use serde_json::Value as Json;
use testbed::http::Client;

use crate::http::expect;

/// A client of one analytics-service, or of several that share the partitions.
#[derive(Debug)]
pub(crate) struct Analytics(Vec<Client>);

impl Analytics {
    pub(crate) fn new(clients: Vec<Client>) -> Self {
        Self(clients)
    }

    /// The sum of their summaries.
    pub(crate) async fn summary(&self) -> Result<Json> {
        let mut whole = Json::Null;
        for client in &self.0 {
            add(&mut whole, expect(&client.get("/analytics/summary?scope=instance").await?, 200)?);
        }
        Ok(whole)
    }

    /// Waits until the records at these offsets have been applied. Reads the summary every `poll_interval` and passes it to
    /// `on_summary`.
    ///
    /// # Errors
    /// If no further record is applied for `timeout`.
    pub(crate) async fn until_applied(
        &self,
        offsets: &BTreeMap<i32, i64>,
        timeout: Duration,
        poll_interval: Duration,
        mut on_summary: impl FnMut(&Json),
    ) -> Result<Json> {
        let (mut best, mut last_progress) = (i64::MIN, Instant::now());
        loop {
            // Fails while the service starts.
            if let Ok(summary) = self.summary().await {
                on_summary(&summary);
                let applied = applied(&summary);
                if offsets.iter().all(|(partition, offset)| applied.get(partition) >= Some(offset)) {
                    return Ok(summary);
                }
                let sum = applied.values().sum();
                if sum > best {
                    (best, last_progress) = (sum, Instant::now());
                }
            }
            if last_progress.elapsed() > timeout {
                return Err(anyhow!("Analytics does not apply the events; see just logs analytics-service."));
            }
            smol::Timer::after(poll_interval).await;
        }
    }

    /// Every dead letter in their states, the newest first.
    pub(crate) async fn dead_letters(&self) -> Result<Vec<Json>> {
        let mut letters = Vec::new();
        for client in &self.0 {
            let mut next = Some("/analytics/dead-letters?limit=1000".to_owned());
            while let Some(path) = next {
                let response = client.get(&path).await?;
                letters.extend(expect(&response, 200)?.as_array().cloned().unwrap_or_default());
                next = response.next();
            }
        }
        Ok(letters)
    }
}

/// Adds the summary of one service to the sum: numbers are added, lists joined.
fn add(whole: &mut Json, share: Json) {
    let Json::Object(sums) = whole else {
        *whole = share;
        return;
    };
    for (name, value) in share.as_object().into_iter().flatten() {
        match (sums.get_mut(name), value) {
            (Some(Json::Array(list)), Json::Array(more)) => list.extend(more.iter().cloned()),
            (Some(sum), Json::Number(more)) => *sum = (sum.as_i64().unwrap_or(0) + more.as_i64().unwrap_or(0)).into(),
            _ => {}
        }
    }
}

/// The offset of the last applied record of each partition.
pub(crate) fn applied(summary: &Json) -> BTreeMap<i32, i64> {
    let partitions = summary["partitions"].as_array().into_iter().flatten();
    let position = |partition: &Json| {
        Some((i32::try_from(partition["partition"].as_i64()?).ok()?, partition["appliedOffset"].as_i64()?))
    };
    partitions.filter_map(position).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn summaries_of_several_services_are_added() {
        let mut whole = Json::Null;
        add(&mut whole, json!({"created": 2, "partitions": [{"partition": 0, "appliedOffset": 1}], "at": "noon"}));
        add(&mut whole, json!({"created": 3, "partitions": [{"partition": 1, "appliedOffset": 7}], "at": "night"}));
        assert_eq!(whole["created"], 5);
        assert_eq!(applied(&whole), BTreeMap::from([(0, 1), (1, 7)]));
    }
}
