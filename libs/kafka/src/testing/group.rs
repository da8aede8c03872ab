//! Offsets that are committed to consumer groups.

use std::collections::BTreeMap;

use kafka_protocol::messages::{
    GroupId, OffsetFetchRequest, OffsetFetchResponse, TopicName, offset_fetch_request::OffsetFetchRequestTopic,
};

use super::request::{check, connect, text};
use crate::{
    Error, Settings,
    call::{Deadline, call},
    versions::requests,
};

requests! {
    OffsetFetchRequest => OffsetFetchResponse, OffsetFetch, 1..=7;
}

/// The offsets of a topic's partitions, `0..partitions`, that were committed to a group. The first bootstrap broker is its
/// coordinator.
///
/// # Errors
/// If the broker is unavailable or rejects the request.
pub async fn committed_offsets(
    settings: &Settings,
    group: &str,
    topic: &str,
    partitions: i32,
) -> Result<BTreeMap<i32, i64>, Error> {
    let topic = OffsetFetchRequestTopic::default()
        .with_name(TopicName(text(topic)))
        .with_partition_indexes((0..partitions).collect());
    let request = OffsetFetchRequest::default().with_group_id(GroupId(text(group))).with_topics(Some(vec![topic]));
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        let response = connect(settings, deadline).await?.call(&request).await?;
        check(response.error_code)?;
        let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        let committed = partitions.filter(|partition| partition.committed_offset >= 0);
        Ok(committed.map(|partition| (partition.partition_index, partition.committed_offset)).collect())
    };
    call("testing", deadline, Box::pin(work)).await
}
