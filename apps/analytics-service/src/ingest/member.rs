//! Counting as a member of the consumer group, which assigns the partitions.
//!
//! When its members change, all of them stop to count, join the next generation, and count what it assigns to them. What the
//! state has of a partition stays there when another member counts it: if it comes back, it is read on from there.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use kafka::{Assignment, BrokerError, Generation, KnownTopic, Member, Subscription};
use runtime::{Backoff, timeout};
use smol::future::or;

use super::{
    BACKOFF, Fetchers, Ingest, PARTITION_POLL_INTERVAL, fetcher,
    gate::Gate,
    known_topic,
    pauses::Pauses,
    reports::{LOGGED_FAILURES, report_moved_keys},
    standbys::StandbyLimits,
};
use crate::{
    members,
    state::{SavedState, StateError},
};

/// How often the coordinator hears from this instance, and this instance of changes.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How often progress is committed, and that of others read.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// Time to leave the group at the shutdown. Otherwise the others wait for the session timeout.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Counts what the group assigns, from the saved positions on, until the state fails.
pub(super) async fn run(
    ingest: &Ingest,
    member: &mut Member,
    mut saved: SavedState,
    pauses: &mut Pauses,
) -> StateError {
    // Whoever joins and cannot count disturbs the others.
    let on_topic = ingest.wait_for_partition_count(known_topic(&saved)).await;
    if let Err(error) = ingest.check_partitions(&saved, &BTreeSet::new(), on_topic) {
        return error;
    }
    // Before the state failed it had partitions, which another member may have now.
    revoke(ingest, &ingest.read_model.read(|snapshot| snapshot.partitions.keys().copied().collect()));
    ingest.read_model.change(|snapshot| snapshot.load(saved.counts.unsplit()));
    loop {
        let assignment = join(ingest, member, &saved).await;
        let known = known_topic(&saved);
        let gate = Gate::before_first_heartbeat();
        let limits = Arc::<StandbyLimits>::default();
        let keep_membership = async {
            keep_membership(ingest, member, (&assignment, known), &gate, &limits).await;
            gate.close();
            pending().await
        };
        // A transaction in flight ends before the next generation is joined.
        if let Err(error) = or(count(ingest, &assignment, saved, (&gate, &limits), pauses), keep_membership).await {
            return error;
        }
        saved = match ingest.state.with(async |state| state.saved().await).await {
            Ok(saved) => saved,
            Err(error) => return error,
        };
    }
}

/// Leaves the group, if the member is not static.
pub(super) async fn leave(mut member: Member) {
    let error = match timeout(LEAVE_TIMEOUT, member.leave()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(elapsed) => elapsed.to_string(),
    };
    tracing::info!(error, "the consumer group was not left; its members wait for the session timeout");
}

/// Joins the next generation, however long it takes.
async fn join(ingest: &Ingest, member: &mut Member, saved: &SavedState) -> Assignment {
    let offsets = saved.positions.iter().map(|(partition, position)| (*partition, position.next)).collect();
    let subscription = Subscription { address: ingest.address.clone(), offsets };
    let mut pauses = Backoff::new(BACKOFF.0, BACKOFF.1);
    let (mut failures, mut is_address_corrected) = (0, false);
    loop {
        match member.join(&subscription).await {
            Ok(assignment) => {
                let own = assignment.members.iter().find(|member| member.is_self);
                // A static member that comes back within the session timeout gets its previous assignment.
                if is_address_corrected || own.is_none_or(|own| own.address == ingest.address) {
                    return assignment;
                }
                is_address_corrected = true;
                member.change_subscription();
                continue;
            }
            Err(error) => {
                failures += 1;
                // Members that join at the same time begin further generations, and a cluster has to make the topic of its first
                // group.
                if failures >= LOGGED_FAILURES {
                    ingest.report_kafka(None, Some(explained(&error)));
                }
            }
        }
        pauses.pause().await;
    }
}

/// Why no generation is joined, again and again.
fn explained(error: &kafka::Error) -> String {
    let why = match error.broker_error().map(BrokerError::name).as_deref() {
        Some("RebalanceInProgress") => {
            "; if this goes on, other members join again and again, or the broker's groups do not work with several members, \
             as Nisshi's at times: then PARTITIONS has to say which instance reads what"
        }
        Some("FencedInstanceId") => {
            "; another instance with this KAFKA_GROUP_INSTANCE_ID has joined, and this one stays out as long as it lives"
        }
        Some("InconsistentGroupProtocol") => {
            "; other programs are members of the group: KAFKA_CONSUMER_GROUP has to be another one"
        }
        _ => "",
    };
    format!("the consumer group cannot be joined: {error}{why}")
}

/// Counts the assigned partitions until the gate is closed.
async fn count(
    ingest: &Ingest,
    assignment: &Assignment,
    saved: SavedState,
    (gate, limits): (&Gate, &Arc<StandbyLimits>),
    pauses: &mut Pauses,
) -> Result<(), StateError> {
    let assigned: BTreeSet<i32> = assignment.partitions.iter().copied().collect();
    if assignment.members.is_empty() {
        // Its leader is of another version, and does not understand this member.
        ingest.report_kafka(None, Some("the leader of the consumer group assigns nothing to this instance".to_owned()));
        gate.closed().await;
        return Ok(());
    }
    // The leader may have asked a broker that is cut off from the others. It notices that as soon as it asks another one.
    let count = partitions_of(assignment).max(ingest.read_model.read(|snapshot| snapshot.topic_partitions));
    let mut saved = ingest.prepare(saved, &assigned, count).await?;
    let (before, copies_before) =
        ingest.read_model.read(|snapshot| (snapshot.partitions.clone(), snapshot.standbys.clone()));
    ingest.read_model.change(|snapshot| {
        snapshot.load(mem::take(&mut saved.counts));
        snapshot.standbys.retain(|partition, _| assignment.standbys.contains(partition));
        // What was known of the ends of those that stay.
        snapshot
            .assign(before.iter().filter(|(partition, _)| assigned.contains(partition)).map(|(n, p)| (*n, p.clone())));
    });
    let revoked: BTreeSet<i32> = before.into_keys().filter(|partition| !assigned.contains(partition)).collect();
    revoke(ingest, &revoked);
    let dropped = copies_before.into_keys().filter(|partition| !assignment.standbys.contains(partition));
    ingest.read_model.drop_standbys(dropped);
    ingest.assign_kafka_error(&assigned);
    let members = assignment.members.iter().map(|member| members::Member {
        address: member.address.clone(),
        partitions: member.partitions.clone(),
        is_self: member.is_self,
    });
    ingest.members.set(Some(members.collect()));
    tracing::info!(
        generation = assignment.generation,
        partitions = ?assigned,
        ?revoked,
        standbys = ?assignment.standbys,
        members = assignment.members.len(),
        "the consumer group has assigned partitions"
    );
    let (shared, queue) = ingest.queue(&saved, assignment.standbys.len());
    let mut fetchers = Fetchers::new();
    ingest.start_fetchers(assigned, &saved, &shared, &mut fetchers);
    ingest.start_standbys(&assignment.standbys, &saved, (&shared, limits), &mut fetchers);
    let applied = ingest.apply_all(&queue, gate, pauses).await;
    for (_, fetcher) in fetchers {
        fetcher.cancel().await;
    }
    applied
}

/// Answers for these partitions no longer, and exports nothing of them.
fn revoke(ingest: &Ingest, partitions: &BTreeSet<i32>) {
    ingest.read_model.revoke(partitions);
    ingest.drop_kafka_errors(partitions);
    partitions.iter().for_each(|partition| fetcher::clear_metrics(&ingest.settings.topic, *partition));
}

/// Keeps the membership until the generation is over, or this member as its leader has to assign added partitions.
async fn keep_membership(
    ingest: &Ingest,
    member: &mut Member,
    (assignment, known): (&Assignment, KnownTopic),
    gate: &Gate,
    limits: &StandbyLimits,
) {
    let watch = watch_partitions(ingest, member.is_leader(), assignment, known);
    // Beside the heartbeats: a bootstrap broker that does not respond may cost the poll the deadline of a call.
    or(send_heartbeats(ingest, member, assignment, gate, limits), watch).await;
}

/// Polls for added partitions, until the leader has to assign some.
async fn watch_partitions(ingest: &Ingest, is_leader: bool, assignment: &Assignment, known: KnownTopic) {
    loop {
        smol::Timer::after(PARTITION_POLL_INTERVAL).await;
        // The fetchers report an unavailable broker.
        let Ok(count) = ingest.partition_count(known).await else { continue };
        if is_leader && count > partitions_of(assignment) {
            tracing::warn!(count, "partitions were added to the topic: the consumer group assigns them");
            if assignment.members.len() > 1 {
                report_moved_keys();
            }
            return;
        }
    }
}

/// Sends heartbeats and commits progress until the generation is over.
async fn send_heartbeats(
    ingest: &Ingest,
    member: &mut Member,
    assignment: &Assignment,
    gate: &Gate,
    limits: &StandbyLimits,
) {
    let mut committed = BTreeMap::new();
    let (mut heartbeat_failures, mut commit_failures, mut limit_failures) = (0, 0, 0);
    let (mut committed_at, mut limits_at) = (Instant::now(), None);
    loop {
        match member.heartbeat().await {
            Ok(Generation::Current { until }) => {
                gate.extend(until);
                if heartbeat_failures >= LOGGED_FAILURES {
                    ingest.report_kafka(None, None);
                }
                heartbeat_failures = 0;
            }
            Ok(Generation::Over) => return,
            Err(error) => {
                heartbeat_failures += 1;
                if heartbeat_failures >= LOGGED_FAILURES {
                    ingest.report_kafka(None, Some(error.to_string()));
                }
            }
        }
        if committed_at.elapsed() >= COMMIT_INTERVAL {
            committed_at = Instant::now();
            let next = ingest.read_model.read(|snapshot| {
                let own = assignment.partitions.iter();
                own.filter_map(|n| Some((*n, snapshot.partitions.get(n)?.next))).collect::<BTreeMap<_, _>>()
            });
            if !next.is_empty() && next != committed {
                let result = member.commit(&next).await;
                if let Ok(Generation::Over) = result {
                    return;
                }
                ingest.report_progress(&mut commit_failures, result.as_ref().err());
                if result.is_ok() {
                    committed = next;
                }
            }
        }
        if !assignment.standbys.is_empty() && limits_at.is_none_or(|at: Instant| at.elapsed() >= COMMIT_INTERVAL) {
            limits_at = Some(Instant::now());
            let result = member.committed(&assignment.standbys).await;
            ingest.report_standbys(&mut limit_failures, result.as_ref().err());
            if let Ok(committed) = result {
                limits.set(committed);
            }
        }
        smol::Timer::after(HEARTBEAT_INTERVAL).await;
    }
}

/// The partitions of the topic when they were assigned: each has one member.
fn partitions_of(assignment: &Assignment) -> i32 {
    let partitions: usize = assignment.members.iter().map(|member| member.partitions.len()).sum();
    i32::try_from(partitions).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use config::{Environment, Reader};
    use runtime::Notify;

    use super::*;
    use crate::{Settings, members::Members, read_model::ReadModel, state::SharedState};

    fn ingest() -> Ingest {
        let settings = Settings::read(&mut Reader::new(Environment::empty()));
        let state = Arc::new(SharedState::new(settings.state.clone()));
        let members = (String::new(), Members::default());
        Ingest::new(settings, state, ReadModel::default(), Arc::new(Notify::new()), members)
    }

    #[test]
    fn an_error_of_a_partition_ends_when_another_member_gets_it() {
        let ingest = ingest();
        let failing = || ingest.read_model.read(|snapshot| snapshot.kafka_errors.keys().copied().collect::<Vec<_>>());
        let fail = |partition| ingest.report_kafka(Some(partition), Some("timeout".to_owned()));
        fail(0);
        fail(1);
        // It still fetches partition 0.
        ingest.assign_kafka_error(&[0].into());
        assert_eq!((failing(), ingest.outages.kafka.is_ongoing()), (vec![Some(0)], true));
        revoke(&ingest, &[0].into());
        assert_eq!((failing(), ingest.outages.kafka.is_ongoing()), (vec![], false));
        fail(1);
        assert!(ingest.outages.kafka.is_ongoing(), "the next outage is logged");
        ingest.report_kafka(None, Some("timeout".to_owned()));
        ingest.assign_kafka_error(&[0, 2].into());
        assert_eq!(failing(), [Some(0), Some(2)]);
    }

    #[test]
    fn a_partition_that_is_read_notifies_nobody_while_another_one_cannot_be() {
        let ingest = ingest();
        ingest.report_kafka(Some(1), Some("timeout".to_owned()));
        let mut change = Box::pin(ingest.read_model.next_change());
        ingest.report_kafka(Some(0), None);
        assert!(smol::block_on(smol::future::poll_once(&mut change)).is_none());
        ingest.report_kafka(Some(1), None);
        assert!(smol::block_on(smol::future::poll_once(&mut change)).is_some());
    }
}
