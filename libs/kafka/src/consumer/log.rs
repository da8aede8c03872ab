//! What the leader's log of a partition has: its range of offsets, and the ends of its epochs.

use std::ops::Range;

use kafka_protocol::{
    error::ParseResponseErrorCode as _,
    messages::{
        ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic},
    },
};

use super::{Consumer, NO_EPOCH, READ_COMMITTED};
use crate::{
    Error, Malformed,
    call::{Deadline, call, millis},
    connection::Connection,
};

/// Timestamps that stand for the earliest and the latest offset in ListOffsets.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;
/// The replica id of a consumer.
const CONSUMER: i32 = -1;

impl Consumer {
    /// The earliest and the latest offset. The latest is the one after the last record.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn offsets(&mut self) -> Result<Range<i64>, Error> {
        self.wait_for_throttle().await;
        let deadline = Deadline::new(self.settings.deadline);
        let work = async {
            let mut connection = self.connection(deadline).await?;
            let earliest = self.list_offset(&mut connection, EARLIEST, deadline).await;
            let offsets = match earliest {
                Ok(earliest) => {
                    let latest = self.list_offset(&mut connection, LATEST, deadline).await;
                    latest.map(|latest| earliest..latest)
                }
                Err(error) => Err(error),
            };
            self.keep_connection_if_usable(connection, offsets)
        };
        call("offsets", deadline, Box::pin(work)).await
    }

    /// The end of what the leader's log has in common with what was read up to `next`, whose last batch has this leader epoch
    /// (KIP-320): `next`, or less if the log was truncated since. Also `next` where brokers cannot tell: Nisshi, and Apache
    /// Kafka before 2.3.
    ///
    /// # Errors
    /// [`Error::OutdatedLeader`] if the leader cannot know what was read. Otherwise as [`fetch`](Self::fetch).
    pub async fn common_end(&mut self, next: i64, leader_epoch: i32) -> Result<i64, Error> {
        self.wait_for_throttle().await;
        let deadline = Deadline::new(self.settings.deadline);
        let work = async {
            let mut connection = self.connection(deadline).await?;
            let end = match self.leader_epoch {
                // Without topic ids it may be another topic, whose epochs begin anew.
                Some(found) if found < leader_epoch && self.fetch_topic_id.is_some() => {
                    self.metadata_cache.update(self.fetch_topic_id, std::iter::once((self.partition, leader_epoch)));
                    Err(Error::OutdatedLeader { found, read: leader_epoch })
                }
                _ => self.end_of_epoch(&mut connection, next, leader_epoch).await,
            };
            self.keep_connection_if_usable(connection, end)
        };
        call("common_end", deadline, Box::pin(work)).await
    }

    async fn end_of_epoch(&self, connection: &mut Connection, next: i64, epoch: i32) -> Result<i64, Error> {
        let Ok(version) = connection.version::<OffsetForLeaderEpochRequest>(i16::MAX) else { return Ok(next) };
        let partition = OffsetForLeaderPartition::default()
            .with_partition(self.partition)
            .with_current_leader_epoch(self.leader_epoch.unwrap_or(NO_EPOCH))
            .with_leader_epoch(epoch);
        let topic = OffsetForLeaderTopic::default().with_topic(self.topic.clone()).with_partitions(vec![partition]);
        let request = OffsetForLeaderEpochRequest::default().with_replica_id(CONSUMER.into()).with_topics(vec![topic]);
        let response = connection.call_in(version, &request).await?;
        let mut partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        let found = partitions.find(|found| found.partition == self.partition).ok_or(Malformed::Response)?;
        match found.error_code.err() {
            Some(error) => Err(connection.broker_error::<OffsetForLeaderEpochRequest>(error, None)),
            // The leader knows neither this epoch nor one before it.
            None if found.leader_epoch < 0 || found.end_offset < 0 => Ok(0),
            // The end of this epoch or, if its log has no record of it, of the one before: where the next one begins. Compaction
            // may have removed every record of an epoch, so nothing was truncated unless that is before `next`.
            None => Ok(found.end_offset.min(next)),
        }
    }

    async fn list_offset(&self, connection: &mut Connection, timestamp: i64, deadline: Deadline) -> Result<i64, Error> {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(self.partition)
            .with_current_leader_epoch(self.leader_epoch.unwrap_or(NO_EPOCH))
            .with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default().with_name(self.topic.clone()).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(CONSUMER.into())
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![topic])
            .with_timeout_ms(millis(deadline.remaining()));
        let response: ListOffsetsResponse = connection.call(&request).await?;
        let topic = response.topics.into_iter().find(|found| found.name == self.topic);
        let mut partitions = topic.into_iter().flat_map(|topic| topic.partitions);
        let found = partitions.find(|found| found.partition_index == self.partition).ok_or(Malformed::Response)?;
        match found.error_code.err() {
            Some(error) => Err(connection.broker_error::<ListOffsetsRequest>(error, None)),
            None => Ok(found.offset),
        }
    }
}
