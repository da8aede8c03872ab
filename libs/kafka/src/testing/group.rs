//! Offsets that are committed to consumer groups.

use std::collections::BTreeMap;

use kafka_protocol::messages::{GroupId, OffsetFetchRequest, TopicName};

use super::request::{connect, text};
use crate::{
    Error, Settings,
    call::{Deadline, call},
    group::{committed_in, requested_topic},
};

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
    let topic = requested_topic(&TopicName(text(topic)), &(0..partitions).collect::<Vec<_>>());
    let request = OffsetFetchRequest::default().with_group_id(GroupId(text(group))).with_topics(Some(vec![topic]));
    let deadline = Deadline::new(settings.deadline);
    let work = async {
        let response = connect(settings, deadline).await?.call(&request).await?;
        Ok(committed_in(&response)?)
    };
    call("testing", deadline, Box::pin(work)).await
}
