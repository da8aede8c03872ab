//! What analytics says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use testbed::http::Client;

use crate::{Failure, Outcome, http::expect, settings::Settings};

/// A client of analytics-service.
#[derive(Debug)]
pub(crate) struct Analytics(Client);

impl Analytics {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(Client::new(settings.analytics_address()))
    }

    pub(crate) async fn summary(&self) -> Outcome<Json> {
        expect(&self.0.get("/analytics/summary").await?, 200)
    }

    /// Waits until the record at each of these offsets of its partition has been applied, looking so often. `look` sees
    /// each summary on the way.
    ///
    /// # Errors
    /// If nothing more is applied for as long as `patience`.
    pub(crate) async fn until_applied(
        &self,
        offsets: &BTreeMap<i32, i64>,
        patience: Duration,
        pause: Duration,
        mut look: impl FnMut(&Json),
    ) -> Outcome<Json> {
        let (mut best, mut moved) = (i64::MIN, Instant::now());
        loop {
            // It may be starting.
            if let Ok(summary) = self.summary().await {
                look(&summary);
                let applied = applied(&summary);
                if offsets.iter().all(|(partition, offset)| applied.get(partition) >= Some(offset)) {
                    return Ok(summary);
                }
                let sum = applied.values().sum();
                if sum > best {
                    (best, moved) = (sum, Instant::now());
                }
            }
            if moved.elapsed() > patience {
                return Err(Failure(
                    "Analytics does not apply the events; see just logs analytics-service.".to_owned(),
                ));
            }
            smol::Timer::after(pause).await;
        }
    }

    /// Every dead letter that it still knows, the newest first.
    pub(crate) async fn dead_letters(&self) -> Outcome<Vec<Json>> {
        let mut letters = Vec::new();
        let mut next = Some("/analytics/dead-letters?limit=1000".to_owned());
        while let Some(path) = next {
            let answer = self.0.get(&path).await?;
            letters.extend(expect(&answer, 200)?.as_array().cloned().unwrap_or_default());
            next = answer.next();
        }
        Ok(letters)
    }
}

/// The offset of the last record applied of each partition.
pub(crate) fn applied(summary: &Json) -> BTreeMap<i32, i64> {
    let partitions = summary["partitions"].as_array().into_iter().flatten();
    let position = |partition: &Json| {
        Some((i32::try_from(partition["partition"].as_i64()?).ok()?, partition["appliedOffset"].as_i64()?))
    };
    partitions.filter_map(position).collect()
}
