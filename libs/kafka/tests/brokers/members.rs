//! Members of a consumer group.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use kafka::{
    Assignment, Error, Generation, GroupProgress, Member, Settings, Subscription,
    testing::{add_partitions, committed_offsets},
};
use smol::Task;
use testbed::broker::Kind;

use crate::{progress::commit, topic};

// Nisshi's coordinator does not wait for the members of the previous generation, and leaves members without an assignment at times.
testbed::on_each_kafka!(
    a_group_with_members_keeps_its_offsets,
    members_share_the_partitions_and_what_one_leaves_goes_to_the_others,
    a_member_that_dies_is_removed_and_gets_its_partitions_back,
    a_static_member_that_restarts_moves_no_partition,
    whose_instance_id_was_taken_over_stays_out_until_it_is_free,
    added_partitions_are_assigned_when_the_leader_joins_again,
    a_generation_that_is_over_commits_no_offset,
    the_leader_assigns_standbys_which_see_what_owners_commit,
);

const PARTITIONS: i32 = 6;
/// Of a member that sends heartbeats, or that is removed without them: the shortest that brokers allow by default.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// Of a member that sends no heartbeats and shall not be removed meanwhile.
const LONG_SESSION_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a test waits for what is going to happen.
const TIMEOUT: Duration = Duration::from_secs(90);

/// The settings, the topic and the group of a test.
struct Group {
    settings: Settings,
    topic: String,
    name: String,
}

/// A member that joins whenever it has to, and reads each of its partitions up to offset 100.
struct Running {
    latest: Arc<Mutex<Option<Assignment>>>,
    task: Task<()>,
}

impl Group {
    async fn new(kind: Kind) -> Self {
        let settings = testbed::shared_broker(kind).await;
        let (topic, name) = (topic(&settings, PARTITIONS).await, format!("group-{:016x}", fastrand::u64(..)));
        Self { settings, topic, name }
    }

    /// A member that sends no heartbeats by itself.
    fn member(&self, instance: Option<&str>) -> Member {
        Member::new(self.settings.clone(), &self.name, &self.topic, instance, LONG_SESSION_TIMEOUT)
    }

    /// Starts a member with this address, which has read these partitions before.
    fn start(&self, address: &str, instance: Option<&str>, read: &[i32]) -> Running {
        let latest = Arc::<Mutex<Option<Assignment>>>::default();
        let offsets = read.iter().map(|partition| (*partition, 100)).collect();
        let subscription = Subscription { address: address.to_owned(), offsets };
        let session_timeout = if instance.is_some() { LONG_SESSION_TIMEOUT } else { SESSION_TIMEOUT };
        let member = Member::new(self.settings.clone(), &self.name, &self.topic, instance, session_timeout);
        let member = member.with_standbys(1);
        let task = runtime::spawn(run(member, subscription, latest.clone()));
        Running { latest, task }
    }
}

/// Joins, and waits for the coordinator, or for the members that join at the same time.
async fn join(member: &mut Member, subscription: &Subscription) -> Assignment {
    let end = Instant::now() + TIMEOUT;
    loop {
        match member.join(subscription).await {
            Ok(assignment) => return assignment,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        smol::Timer::after(Duration::from_millis(50)).await;
    }
}

async fn run(mut member: Member, mut subscription: Subscription, latest: Arc<Mutex<Option<Assignment>>>) {
    loop {
        let assignment = join(&mut member, &subscription).await;
        subscription.offsets.extend(assignment.partitions.iter().map(|partition| (*partition, 100)));
        *latest.lock().unwrap() = Some(assignment);
        while !matches!(member.heartbeat().await, Ok(Generation::Over)) {
            smol::Timer::after(Duration::from_millis(100)).await;
        }
    }
}

impl Running {
    fn latest(&self) -> Option<Assignment> {
        self.latest.lock().unwrap().clone()
    }

    /// Ends it like a kill: it does not leave.
    async fn kill(self) {
        self.task.cancel().await;
    }
}

/// Waits until the members have the same generation with this many members, and returns their partitions.
async fn until_shared<const COUNT: usize>(running: [&Running; COUNT]) -> [Vec<i32>; COUNT] {
    let end = Instant::now() + TIMEOUT;
    loop {
        let latest = running.map(Running::latest);
        let is_shared = latest.iter().all(|assignment| {
            let generation = assignment.as_ref().map(|assignment| (assignment.generation, assignment.members.len()));
            generation.is_some_and(|found| found == (latest[0].as_ref().unwrap().generation, COUNT))
        });
        if is_shared {
            let assignments = latest.map(Option::unwrap);
            for assignment in &assignments {
                let own: Vec<_> = assignment.members.iter().filter(|member| member.is_self).collect();
                assert_eq!(own.len(), 1, "{assignment:?}");
                assert_eq!(own[0].partitions, assignment.partitions, "{assignment:?}");
                let of_all = |assignment: &Assignment| -> BTreeMap<String, Vec<i32>> {
                    let pairs =
                        assignment.members.iter().map(|member| (member.address.clone(), member.partitions.clone()));
                    pairs.collect()
                };
                assert_eq!(of_all(assignment), of_all(&assignments[0]), "everybody knows of everybody");
            }
            return assignments.map(|assignment| assignment.partitions);
        }
        assert!(Instant::now() < end, "{latest:?}");
        smol::Timer::after(Duration::from_millis(20)).await;
    }
}

fn all(partitions: &[Vec<i32>]) -> Vec<i32> {
    let mut all = partitions.concat();
    all.sort_unstable();
    all
}

fn a_group_with_members_keeps_its_offsets(kind: Kind) {
    runtime::block_on(2, async move {
        let group = Group::new(kind).await;
        let Group { settings, topic, name } = &group;
        // Before the first commit Kafka has no topic of coordinators.
        let mut progress = GroupProgress::new(settings.clone(), name, topic);
        commit(&mut progress, &[(0, 3)].into()).await;
        let mut member = group.member(None);
        join(&mut member, &Subscription::default()).await;
        let rejected = progress.commit(&[(0, 5)].into()).await.unwrap_err();
        assert!(
            matches!(rejected, Error::Unavailable(_)) && rejected.to_string().contains("UnknownMemberId"),
            "{rejected}"
        );
        assert_eq!(committed_offsets(settings, name, topic, 1).await.unwrap(), [(0, 3)].into());
        assert!(matches!(member.commit(&[(0, 4)].into()).await, Ok(Generation::Current { .. })));
        assert_eq!(committed_offsets(settings, name, topic, 1).await.unwrap(), [(0, 4)].into());
        member.leave().await.unwrap();
        commit(&mut progress, &[(0, 5)].into()).await;
        assert_eq!(committed_offsets(settings, name, topic, 1).await.unwrap(), [(0, 5)].into());
    });
}

fn members_share_the_partitions_and_what_one_leaves_goes_to_the_others(kind: Kind) {
    runtime::block_on(2, async move {
        let group = Group::new(kind).await;
        let first = group.start("first:1", None, &[]);
        assert_eq!(until_shared([&first]).await, [[0, 1, 2, 3, 4, 5]]);
        let second = group.start("second:1", None, &[]);
        let of_two = until_shared([&first, &second]).await;
        assert_eq!((all(&of_two), of_two[0].len()), ((0..6).collect(), 3), "{of_two:?}");

        let mut third = group.member(None);
        let subscription = Subscription { address: "third:1".to_owned(), ..Subscription::default() };
        let of_third = join(&mut third, &subscription).await;
        assert_eq!((of_third.members.len(), of_third.partitions.len()), (3, 2), "{of_third:?}");
        for (before, member) in of_two.iter().zip([&first, &second]) {
            let end = Instant::now() + TIMEOUT;
            loop {
                let now = member.latest().unwrap();
                if now.generation == of_third.generation {
                    assert!(now.partitions.iter().all(|partition| before.contains(partition)), "{now:?}");
                    break;
                }
                assert!(Instant::now() < end, "{now:?}");
                smol::Timer::after(Duration::from_millis(20)).await;
            }
        }
        third.leave().await.unwrap();
        assert_eq!(until_shared([&first, &second]).await, of_two, "they have the state of what they had before");
        first.kill().await;
        second.kill().await;
    });
}

fn a_member_that_dies_is_removed_and_gets_its_partitions_back(kind: Kind) {
    runtime::block_on(2, async move {
        let group = Group::new(kind).await;
        let (first, second) = (group.start("first:1", None, &[]), group.start("second:1", None, &[]));
        let of_two = until_shared([&first, &second]).await;
        second.kill().await;
        assert_eq!(until_shared([&first]).await, [[0, 1, 2, 3, 4, 5]]);
        // It knows where it was; the other is as far in its own partitions alone.
        let returned = group.start("second:1", None, &of_two[1]);
        let of_two_again = until_shared([&first, &returned]).await;
        assert_eq!((all(&of_two_again), of_two_again[1].len()), ((0..6).collect(), 3), "{of_two_again:?}");
        first.kill().await;
        returned.kill().await;
    });
}

fn a_static_member_that_restarts_moves_no_partition(kind: Kind) {
    runtime::block_on(2, async move {
        let group = Group::new(kind).await;
        let (first, second) =
            (group.start("first:1", Some("first"), &[]), group.start("second:1", Some("second"), &[]));
        let of_two = until_shared([&first, &second]).await;
        let generation = first.latest().unwrap().generation;
        for (restarted, expected) in [(first, &of_two[0]), (second, &of_two[1])] {
            let address =
                restarted.latest().unwrap().members.iter().find(|member| member.is_self).unwrap().address.clone();
            restarted.kill().await;
            let mut again = group.member(Some(address.strip_suffix(":1").unwrap()));
            let assignment = join(&mut again, &Subscription { address, ..Subscription::default() }).await;
            assert_eq!((&assignment.partitions, assignment.generation), (expected, generation), "{assignment:?}");
            assert_eq!(assignment.members.iter().filter(|member| member.is_self).count(), 1, "{assignment:?}");
            assert!(matches!(again.heartbeat().await, Ok(Generation::Current { .. })));
        }
    });
}

fn whose_instance_id_was_taken_over_stays_out_until_it_is_free(kind: Kind) {
    runtime::block_on(2, async move {
        let group = Group::new(kind).await;
        let subscription = Subscription::default();
        let mut old = group.member(Some("only"));
        join(&mut old, &subscription).await;
        let mut new = group.member(Some("only"));
        let assignment = join(&mut new, &subscription).await;
        assert_eq!(assignment.partitions, [0, 1, 2, 3, 4, 5]);
        assert_eq!(old.heartbeat().await.unwrap(), Generation::Over);
        let rejected = old.join(&subscription).await.unwrap_err();
        assert!(
            matches!(rejected, Error::RequestRejected(_)) && rejected.to_string().contains("FencedInstanceId"),
            "{rejected}"
        );
        assert!(matches!(new.heartbeat().await, Ok(Generation::Current { .. })), "it is not taken back");
        drop(new);
        assert_eq!(join(&mut old, &subscription).await.partitions, [0, 1, 2, 3, 4, 5], "it is free");
    });
}

fn added_partitions_are_assigned_when_the_leader_joins_again(kind: Kind) {
    runtime::block_on(2, async move {
        let group = Group::new(kind).await;
        let subscription = Subscription::default();
        let mut leader = group.member(Some("leader"));
        assert_eq!(join(&mut leader, &subscription).await.partitions.len(), 6);
        assert!(leader.is_leader());
        let settings = Settings { deadline: Duration::from_secs(30), ..group.settings.clone() };
        add_partitions(&settings, &group.topic, 8).await.unwrap();
        let end = Instant::now() + TIMEOUT;
        while join(&mut leader, &subscription).await.partitions.len() < 8 {
            assert!(Instant::now() < end, "the added partitions are not assigned");
        }
    });
}

fn a_generation_that_is_over_commits_no_offset(kind: Kind) {
    runtime::block_on(2, async move {
        let group = Group::new(kind).await;
        let mut old = group.member(None);
        join(&mut old, &Subscription::default()).await;
        assert!(matches!(old.commit(&[(0, 5)].into()).await, Ok(Generation::Current { .. })));
        let new = group.start("new:1", None, &[]);
        // It makes no heartbeats, so the coordinator removes it.
        until_shared([&new]).await;
        assert_eq!(old.commit(&[(0, 1)].into()).await.unwrap(), Generation::Over);
        let committed = committed_offsets(&group.settings, &group.name, &group.topic, 1).await.unwrap();
        assert_eq!(committed, [(0, 5)].into());
        new.kill().await;
    });
}

fn the_leader_assigns_standbys_which_see_what_owners_commit(kind: Kind) {
    runtime::block_on(2, async move {
        let group = Group::new(kind).await;
        let leader = group.start("leader:1", None, &[]);
        until_shared([&leader]).await;
        assert!(leader.latest().unwrap().standbys.is_empty(), "nobody else is there");
        let mut member = group.member(None);
        let assignment = join(&mut member, &Subscription::default()).await;
        let [of_leader, own] = [false, true]
            .map(|is_self| assignment.members.iter().find(|member| member.is_self == is_self).unwrap().clone());
        assert_eq!(own.partitions.len(), 3);
        assert_eq!((&own.standbys, &of_leader.standbys), (&of_leader.partitions, &own.partitions));
        assert_eq!(assignment.standbys, own.standbys);
        assert!(member.committed(&own.standbys).await.unwrap().is_empty());
        let next: BTreeMap<_, _> = [(own.partitions[0], 7), (own.partitions[2], 0)].into();
        assert!(matches!(member.commit(&next).await, Ok(Generation::Current { .. })));
        assert_eq!(member.committed(&own.partitions).await.unwrap(), next);
        leader.kill().await;
    });
}
