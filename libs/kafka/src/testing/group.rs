//! Consumer groups: committed offsets, and a member as other programs have them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kafka_protocol::{
    error::ParseResponseErrorCode as _,
    messages::{
        GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
        LeaveGroupResponse, OffsetFetchRequest, OffsetFetchResponse, SyncGroupRequest, SyncGroupResponse, TopicName,
        join_group_request::JoinGroupRequestProtocol, leave_group_request::MemberIdentity,
        offset_fetch_request::OffsetFetchRequestTopic, sync_group_request::SyncGroupRequestAssignment,
    },
    protocol::StrBytes,
};

use super::request::{COORDINATOR_TIMEOUT, POLL_INTERVAL, TEST_DEADLINE, check, connect, text};
use crate::{
    Error, Settings,
    call::{Deadline, call, millis},
    connection::Connection,
    versions::requests,
};

requests! {
    OffsetFetchRequest => OffsetFetchResponse, OffsetFetch, 1..=7;
    // Since version 5 of JoinGroup, 3 of SyncGroup, Heartbeat and LeaveGroup, members may be static.
    JoinGroupRequest => JoinGroupResponse, JoinGroup, 5..=9;
    SyncGroupRequest => SyncGroupResponse, SyncGroup, 3..=5;
    HeartbeatRequest => HeartbeatResponse, Heartbeat, 3..=4;
    LeaveGroupRequest => LeaveGroupResponse, LeaveGroup, 3..=5;
}

/// The type of the groups of consumers, and the only assignor of [`GroupMember`].
const PROTOCOL: (&str, &str) = ("consumer", "test");
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);

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

/// The only member of a group, whose coordinator is the first bootstrap broker.
#[derive(Debug)]
pub struct GroupMember {
    connection: Connection,
    group: GroupId,
    instance: Option<StrBytes>,
    id: StrBytes,
    generation: i32,
}

impl GroupMember {
    /// Joins as the static member `instance`, and assigns itself nothing.
    ///
    /// # Errors
    /// If the broker is unavailable or rejects a request.
    pub async fn join(settings: &Settings, group: &str, instance: &str) -> Result<Self, Error> {
        let (protocol_type, assignor) = PROTOCOL;
        let (group, instance) = (GroupId(text(group)), Some(text(instance)));
        let protocol = JoinGroupRequestProtocol::default().with_name(text(assignor)).with_metadata(Bytes::new());
        let mut join = JoinGroupRequest::default()
            .with_group_id(group.clone())
            .with_session_timeout_ms(millis(SESSION_TIMEOUT))
            .with_rebalance_timeout_ms(millis(SESSION_TIMEOUT))
            .with_group_instance_id(instance.clone())
            .with_protocol_type(text(protocol_type))
            .with_protocols(vec![protocol]);
        let mut connection = connect(settings, Deadline::new(TEST_DEADLINE)).await?;
        let end = Instant::now() + COORDINATOR_TIMEOUT;
        loop {
            let joined = connection.call(&join).await?;
            let error = match joined.error_code.err() {
                None => {
                    let assignment = SyncGroupRequestAssignment::default().with_member_id(joined.member_id.clone());
                    let sync = SyncGroupRequest::default()
                        .with_group_id(group.clone())
                        .with_generation_id(joined.generation_id)
                        .with_member_id(joined.member_id.clone())
                        .with_group_instance_id(instance.clone())
                        .with_protocol_type(Some(text(protocol_type)))
                        .with_protocol_name(Some(text(assignor)))
                        .with_assignments(vec![assignment]);
                    match connection.call(&sync).await?.error_code.err() {
                        None => {
                            let (id, generation) = (joined.member_id, joined.generation_id);
                            return Ok(Self { connection, group, instance, id, generation });
                        }
                        Some(error) => error,
                    }
                }
                Some(error) => error,
            };
            // A coordinator that loads, or a rebalance that has begun anew.
            join.member_id = joined.member_id;
            if Instant::now() > end {
                return Err(error.into());
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    /// Tells the coordinator that the member lives.
    ///
    /// # Errors
    /// If the broker is unavailable, or the member is none of this generation any more.
    pub async fn heartbeat(&mut self) -> Result<(), Error> {
        let request = HeartbeatRequest::default()
            .with_group_id(self.group.clone())
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone());
        check(self.connection.call(&request).await?.error_code)
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// If the broker is unavailable or rejects the request.
    pub async fn leave(mut self) -> Result<(), Error> {
        let member =
            MemberIdentity::default().with_member_id(self.id.clone()).with_group_instance_id(self.instance.clone());
        let request = LeaveGroupRequest::default().with_group_id(self.group.clone()).with_members(vec![member]);
        let response = self.connection.call(&request).await?;
        check(response.error_code)?;
        response.members.iter().try_for_each(|member| check(member.error_code))
    }
}
