//! What one analytics-service answers for itself, apart from the other instances.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::{Error, http::Client};

/// The summary of what an instance has counted itself.
///
/// # Errors
/// If it does not answer, or with another status than 200.
pub async fn own_summary(analytics: &Client) -> Result<Json, Error> {
    let response = analytics.get("/analytics/summary?scope=instance").await?;
    if response.status != 200 {
        return Err(Error::new(format!("analytics responded with status {}", response.status)));
    }
    Ok(response.json())
}

/// The next offset of each partition in a list of a summary, `partitions` or `standbys`; none if there is no such list.
pub fn next_offsets(partitions: &Json) -> BTreeMap<i64, i64> {
    let partitions = partitions.as_array().into_iter().flatten();
    let next = |of: &Json| Some((of["partition"].as_i64()?, of["appliedOffset"].as_i64()? + 1));
    partitions.filter_map(next).collect()
}
