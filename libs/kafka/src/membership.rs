//! Membership of a consumer group, by the classic protocol: join, synchronize, heartbeats, leave.
//!
//! Each change of the members or of the partitions begins a generation. All members join it, one of them, the leader, assigns the
//! partitions, and each gets its own from the coordinator. Between two generations no member may work on a partition: stop before
//! [`Member::join`].

mod assignor;
mod user_data;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kafka_protocol::{
    error::{ParseResponseErrorCode as _, ResponseError},
    messages::{
        HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
        LeaveGroupResponse, OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest, SyncGroupResponse, TopicName,
        join_group_request::JoinGroupRequestProtocol, join_group_response::JoinGroupResponseMember,
        leave_group_request::MemberIdentity, sync_group_request::SyncGroupRequestAssignment,
    },
    protocol::StrBytes,
};

use self::user_data::{NamedMember, Subscriber};
use crate::{
    Error, Malformed, Settings,
    call::{Deadline, call, millis, text},
    connection::Connection,
    group::{Coordinator, committed_in, committed_topic, requested_topic},
    metadata,
    versions::{Request, requests},
};

requests! {
    // Since version 5 of JoinGroup, 3 of SyncGroup, Heartbeat and LeaveGroup, members may be static.
    JoinGroupRequest => JoinGroupResponse, JoinGroup, 5..=9;
    SyncGroupRequest => SyncGroupResponse, SyncGroup, 3..=5;
    HeartbeatRequest => HeartbeatResponse, Heartbeat, 3..=4;
    LeaveGroupRequest => LeaveGroupResponse, LeaveGroup, 3..=5;
}

/// The type of the groups of consumers, and the only assignor of a [`Member`].
const PROTOCOL: (&str, &str) = ("consumer", "sticky-by-state");
/// How long the coordinator waits at least for the members of the previous generation to join a generation; those that do not are removed.
const MIN_REBALANCE_TIMEOUT: Duration = Duration::from_secs(30);

/// A member of a consumer group that reads one topic. It has a connection of its own to the group's coordinator, and makes one
/// call at a time.
///
/// The coordinator removes a member whose heartbeats it misses for the session timeout. A member with an instance id is static: if
/// it is restarted within the session timeout, it gets the partitions that it had, and the others notice nothing.
#[derive(Debug)]
pub struct Member {
    coordinator: Coordinator,
    topic: TopicName,
    instance: Option<StrBytes>,
    session_timeout: Duration,
    /// The standbys that it assigns to each partition, if it is the leader.
    standbys: usize,
    /// From the coordinator; empty before it is known.
    id: StrBytes,
    generation: i32,
    is_leader: bool,
    /// The partitions of the last generation.
    owned: Vec<i32>,
    /// Part of the subscription.
    revision: i32,
}

/// What a member tells the others when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Where it answers for its partitions, such as a host and a port.
    pub address: String,
    /// The next offset of each partition of which it has state.
    pub offsets: BTreeMap<i32, i64>,
}

/// The assignment of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The number of the generation.
    pub generation: i32,
    /// The partitions of this member.
    pub partitions: Vec<i32>,
    /// The partitions of others of which this member keeps a copy.
    pub standbys: Vec<i32>,
    /// All members, this one too.
    pub members: Vec<AssignedMember>,
}

/// A member of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedMember {
    /// See [`Subscription::address`]. Of a static member that was restarted it may be the previous one.
    pub address: String,
    /// Its partitions.
    pub partitions: Vec<i32>,
    /// The partitions of others of which it keeps a copy.
    pub standbys: Vec<i32>,
    /// Whether it is this member.
    pub is_self: bool,
}

/// Whether the generation of a member is the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// It is, and no other member gets the partitions before this time.
    Current {
        /// The session timeout after the coordinator was asked.
        until: Instant,
    },
    /// It is over: stop to work on the partitions, and [`join`](Member::join) the next one.
    Over,
}

impl Member {
    /// A member that joins at its first [`join`](Self::join). With an instance id it is static.
    pub fn new(
        settings: Settings,
        group: &str,
        topic: &str,
        instance: Option<&str>,
        session_timeout: Duration,
    ) -> Self {
        Self {
            coordinator: Coordinator::new(settings, group),
            topic: TopicName(text(topic)),
            instance: instance.map(text),
            session_timeout,
            standbys: 0,
            id: StrBytes::default(),
            generation: -1,
            is_leader: false,
            owned: Vec::new(),
            revision: 0,
        }
    }

    /// As the leader, assigns so many standbys to each partition: members that keep a copy of it, and of which one gets it if its member
    /// dies.
    #[must_use]
    pub fn with_standbys(self, standbys: usize) -> Self {
        Self { standbys, ..self }
    }

    /// Whether it is the leader of its generation, which has to join again when partitions are added to the topic.
    pub fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// Makes the next [`join`](Self::join) begin a generation, although nothing else has changed.
    pub fn change_subscription(&mut self) {
        self.revision = self.revision.wrapping_add(1);
    }

    /// Joins the next generation, or the current one, and waits for its assignment: while another member does not join, up to
    /// 30 s, or the session timeout if that is longer. After an error, pause and join again.
    ///
    /// # Errors
    /// [`Error::RequestRejected`] if the group is not permitted, has members with another assignor, or another process has taken
    /// the instance id over (`FencedInstanceId`); [`Error::UnknownTopic`] if there is no such topic; otherwise if the coordinator
    /// is unavailable, or another generation has begun meanwhile.
    pub async fn join(&mut self, subscription: &Subscription) -> Result<Assignment, Error> {
        let deadline = Deadline::new(self.coordinator.settings.deadline + self.rebalance_timeout());
        // Boxed, because a connection is large, and would be part of every caller's future.
        call("join_group", deadline, Box::pin(self.join_and_synchronize(subscription, deadline))).await
    }

    /// How long the coordinator waits for the members of the previous generation. A member that does not reach it works on its partitions until the
    /// session timeout has passed, so they are given away not earlier.
    fn rebalance_timeout(&self) -> Duration {
        self.session_timeout.max(MIN_REBALANCE_TIMEOUT)
    }

    async fn join_and_synchronize(
        &mut self,
        subscription: &Subscription,
        deadline: Deadline,
    ) -> Result<Assignment, Error> {
        (self.is_leader, self.generation) = (false, -1);
        // Before it joins, because the others wait for the leader.
        let connecting = self.coordinator.deadline();
        let Coordinator { settings, metadata_cache, .. } = &mut self.coordinator;
        let partitions = metadata::topic(settings, connecting, &self.topic, metadata_cache).await?.leaders.len();
        let partitions = i32::try_from(partitions).map_err(|_| Malformed::Response)?;
        let connection = self.coordinator.connect(connecting).await?;
        let mut connection = connection.reuse(&self.coordinator.settings, deadline).await?;
        let joined = self.join_generation(&mut connection, subscription).await?;
        (self.id, self.generation) = (joined.member_id.clone(), joined.generation_id);
        self.is_leader = joined.leader == joined.member_id;
        let assignments = match self.is_leader && !joined.skip_assignment {
            true => self.assign(joined.members, partitions),
            false => Vec::new(),
        };
        let (protocol_type, assignor) = PROTOCOL;
        let sync = SyncGroupRequest::default()
            .with_group_id(self.coordinator.group.clone())
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone())
            .with_protocol_type(Some(text(protocol_type)))
            .with_protocol_name(Some(text(assignor)))
            .with_assignments(assignments);
        let synchronized = connection.call(&sync).await?;
        if let Some(error) = synchronized.error_code.err() {
            self.note(error);
            return Err(connection.broker_error::<SyncGroupRequest>(error, None));
        }
        self.coordinator.keep(connection);
        // A member that the leader does not understand has no assignment.
        let (partitions, members) = match synchronized.assignment.is_empty() {
            true => (Vec::new(), Vec::new()),
            false => user_data::decode_assignment(&self.name(), &self.topic, synchronized.assignment)?,
        };
        self.owned.clone_from(&partitions);
        let own = members.iter().find(|member| member.is_self);
        let standbys = own.map(|member| member.standbys.clone()).unwrap_or_default();
        Ok(Assignment { generation: self.generation, partitions, standbys, members })
    }

    async fn join_generation(
        &mut self,
        connection: &mut Connection,
        subscription: &Subscription,
    ) -> Result<JoinGroupResponse, Error> {
        let (protocol_type, assignor) = PROTOCOL;
        let metadata = user_data::encode_subscription(&self.topic, subscription, &self.owned, self.revision);
        let protocol = JoinGroupRequestProtocol::default().with_name(text(assignor)).with_metadata(metadata);
        let mut request = JoinGroupRequest::default()
            .with_group_id(self.coordinator.group.clone())
            .with_session_timeout_ms(millis(self.session_timeout))
            .with_rebalance_timeout_ms(millis(self.rebalance_timeout()))
            .with_group_instance_id(self.instance.clone())
            .with_protocol_type(text(protocol_type))
            .with_protocols(vec![protocol]);
        loop {
            request.member_id = self.id.clone();
            let joined = connection.call(&request).await?;
            match joined.error_code.err() {
                None => return Ok(joined),
                // The id of a member that is not static: with it, the coordinator knows it again if this response is lost.
                Some(ResponseError::MemberIdRequired) if self.id.is_empty() && !joined.member_id.is_empty() => {
                    self.id = joined.member_id;
                }
                Some(error) => {
                    self.note(error);
                    return Err(connection.broker_error::<JoinGroupRequest>(error, None));
                }
            }
        }
    }

    /// Assigns the partitions to the members, for SyncGroup.
    fn assign(&self, members: Vec<JoinGroupResponseMember>, partitions: i32) -> Vec<SyncGroupRequestAssignment> {
        let mut subscribers = Vec::new();
        for JoinGroupResponseMember { member_id, group_instance_id, metadata, .. } in members {
            let name = StrBytes::to_string(group_instance_id.as_ref().unwrap_or(&member_id));
            match user_data::decode_subscription(name, &self.topic, metadata) {
                Ok(subscriber) => subscribers.push((member_id, subscriber)),
                Err(error) => {
                    let member_id = member_id.as_str();
                    tracing::warn!(member_id, %error, "a member of the consumer group has an unreadable subscription, and gets no partition");
                }
            }
        }
        let candidates: Vec<_> = subscribers.iter().map(|(_, subscriber)| subscriber.candidate.clone()).collect();
        let assigned = assignor::assign(&candidates, partitions);
        let standbys = assignor::assign_standbys(&candidates, &assigned, self.standbys);
        let of_member = subscribers.iter().zip(assigned.iter().zip(standbys));
        let named = of_member.map(|((_, Subscriber { candidate, address }), (partitions, standbys))| {
            let (name, address) = (candidate.name.clone(), address.clone());
            NamedMember { name, address, partitions: partitions.clone(), standbys }
        });
        let members: Vec<_> = named.collect();
        let assignment = |((member_id, _), partitions): (&(StrBytes, Subscriber), &Vec<i32>)| {
            SyncGroupRequestAssignment::default()
                .with_member_id(member_id.clone())
                .with_assignment(user_data::encode_assignment(&self.topic, partitions, &members))
        };
        subscribers.iter().zip(&assigned).map(assignment).collect()
    }

    /// Tells the coordinator that the member lives. Call it several times in a session timeout.
    ///
    /// # Errors
    /// If the coordinator is unavailable. The generation may be current all the same.
    pub async fn heartbeat(&mut self) -> Result<Generation, Error> {
        let request = HeartbeatRequest::default()
            .with_group_id(self.coordinator.group.clone())
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone());
        let deadline = self.coordinator.deadline();
        let work = async {
            let mut connection = self.coordinator.connect(deadline).await?;
            let asked_at = Instant::now();
            let error = connection.call(&request).await?.error_code.err();
            self.generation_after::<HeartbeatRequest>(connection, asked_at, error)
        };
        call("heartbeat", deadline, Box::pin(work)).await
    }

    /// Commits the offset of the next record of each partition, for programs that show a group's lag.
    ///
    /// # Errors
    /// As [`GroupProgress::commit`](crate::GroupProgress::commit).
    pub async fn commit(&mut self, next: &BTreeMap<i32, i64>) -> Result<Generation, Error> {
        let request = OffsetCommitRequest::default()
            .with_group_id(self.coordinator.group.clone())
            .with_generation_id_or_member_epoch(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone())
            .with_topics(vec![committed_topic(&self.topic, next)]);
        let deadline = self.coordinator.deadline();
        let work = async {
            let mut connection = self.coordinator.connect(deadline).await?;
            let asked_at = Instant::now();
            let response = connection.call(&request).await?;
            let mut committed = response.topics.iter().flat_map(|topic| &topic.partitions);
            let error = committed.find_map(|partition| partition.error_code.err());
            self.generation_after::<OffsetCommitRequest>(connection, asked_at, error)
        };
        call("commit_progress", deadline, Box::pin(work)).await
    }

    /// The offsets that were committed for these partitions, by whichever member; of those for which none was, none.
    ///
    /// # Errors
    /// As [`GroupProgress::commit`](crate::GroupProgress::commit).
    pub async fn committed(&mut self, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, Error> {
        let request = OffsetFetchRequest::default()
            .with_group_id(self.coordinator.group.clone())
            .with_topics(Some(vec![requested_topic(&self.topic, partitions)]));
        let deadline = self.coordinator.deadline();
        let work = async {
            let mut connection = self.coordinator.connect(deadline).await?;
            let response = connection.call(&request).await?;
            let committed =
                committed_in(&response).map_err(|e| connection.broker_error::<OffsetFetchRequest>(e, None))?;
            self.coordinator.keep(connection);
            Ok(committed)
        };
        call("committed_progress", deadline, Box::pin(work)).await
    }

    /// Leaves the group at once, unless the member is static: then its partitions wait for its restart until the session timeout.
    ///
    /// # Errors
    /// If the coordinator is unavailable or rejects the request.
    pub async fn leave(&mut self) -> Result<(), Error> {
        if self.instance.is_some() || self.id.is_empty() {
            return Ok(());
        }
        let member = MemberIdentity::default().with_member_id(std::mem::take(&mut self.id));
        let request =
            LeaveGroupRequest::default().with_group_id(self.coordinator.group.clone()).with_members(vec![member]);
        let deadline = self.coordinator.deadline();
        let work = async {
            let mut connection = self.coordinator.connect(deadline).await?;
            let response = connection.call(&request).await?;
            let members = response.members.iter().map(|member| member.error_code);
            let mut errors = std::iter::once(response.error_code).chain(members).filter_map(|code| code.err());
            match errors.next() {
                // It was removed before.
                None | Some(ResponseError::UnknownMemberId) => Ok(()),
                Some(error) => Err(connection.broker_error::<LeaveGroupRequest>(error, None)),
            }
        };
        call("leave_group", deadline, Box::pin(work)).await
    }

    fn generation_after<Q: Request>(
        &mut self,
        connection: Connection,
        asked_at: Instant,
        error: Option<ResponseError>,
    ) -> Result<Generation, Error> {
        let generation = match error {
            None => Generation::Current { until: asked_at + self.session_timeout },
            Some(error) if is_over(error) => {
                self.note(error);
                Generation::Over
            }
            Some(error) => return Err(connection.broker_error::<Q>(error, None)),
        };
        self.coordinator.keep(connection);
        Ok(generation)
    }

    /// Forgets the id if the coordinator does not know it any more. Whose instance id was taken over keeps its own: with it, it
    /// takes nothing back as long as the other lives.
    fn note(&mut self, error: ResponseError) {
        if error == ResponseError::UnknownMemberId {
            self.id = StrBytes::default();
        }
    }

    /// The name in assignments: the same after a restart of a static member.
    fn name(&self) -> String {
        StrBytes::to_string(self.instance.as_ref().unwrap_or(&self.id))
    }
}

/// Whether the generation of a request is over.
fn is_over(error: ResponseError) -> bool {
    matches!(
        error,
        ResponseError::RebalanceInProgress
            | ResponseError::UnknownMemberId
            | ResponseError::IllegalGeneration
            | ResponseError::FencedInstanceId
    )
}
