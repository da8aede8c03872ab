//! What analytics says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use testbed::http::Client;

use crate::{Failure, Outcome, http::expect};

/// A client of analytics-service, or of all of them where the partitions are shared.
#[derive(Debug)]
pub(crate) struct Analytics(Vec<Client>);

impl Analytics {
    pub(crate) fn new(addresses: Vec<String>) -> Self {
        Self(addresses.into_iter().map(Client::new).collect())
    }

    /// What they know together.
    pub(crate) async fn summary(&self) -> Outcome<Json> {
        let mut whole = Json::Null;
        for client in &self.0 {
            add(&mut whole, expect(&client.get("/analytics/summary").await?, 200)?);
        }
        Ok(whole)
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

    /// Every dead letter that is still known, the newest first.
    pub(crate) async fn dead_letters(&self) -> Outcome<Vec<Json>> {
        let mut letters = Vec::new();
        for client in &self.0 {
            let mut next = Some("/analytics/dead-letters?limit=1000".to_owned());
            while let Some(path) = next {
                let answer = client.get(&path).await?;
                letters.extend(expect(&answer, 200)?.as_array().cloned().unwrap_or_default());
                next = answer.next();
            }
        }
        Ok(letters)
    }
}

/// Adds the share of one to that of others: numbers are added, lists joined.
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

/// The offset of the last record applied of each partition.
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
    fn shares_make_a_whole() {
        let mut whole = Json::Null;
        add(&mut whole, json!({"created": 2, "partitions": [{"partition": 0, "appliedOffset": 1}], "at": "noon"}));
        add(&mut whole, json!({"created": 3, "partitions": [{"partition": 1, "appliedOffset": 7}], "at": "night"}));
        assert_eq!(whole["created"], 5);
        assert_eq!(applied(&whole), BTreeMap::from([(0, 1), (1, 7)]));
    }
}
