//! A consumer group that has members.

use kafka::{
    Error, GroupProgress,
    testing::{GroupMember, committed_offsets},
};
use testbed::broker::Kind;

use crate::{progress::commit, topic};

// Nisshi answers every SyncGroup with RebalanceInProgress.
testbed::on_each_kafka!(a_group_with_members_keeps_its_offsets);

fn a_group_with_members_keeps_its_offsets(kind: Kind) {
    runtime::block_on(2, async move {
        let settings = testbed::shared_broker(kind).await;
        let (topic, group) = (topic(&settings, 1).await, format!("group-{:016x}", fastrand::u64(..)));
        // Before the first commit Kafka has no topic of coordinators.
        let mut progress = GroupProgress::new(settings.clone(), &group, &topic);
        commit(&mut progress, &[(0, 3)].into()).await;
        let mut member = GroupMember::join(&settings, &group, "original").await.unwrap();
        member.heartbeat().await.unwrap();
        let rejected = progress.commit(&[(0, 5)].into()).await.unwrap_err();
        assert!(
            matches!(rejected, Error::Unavailable(_)) && rejected.to_string().contains("UnknownMemberId"),
            "{rejected}"
        );
        assert_eq!(committed_offsets(&settings, &group, &topic, 1).await.unwrap(), [(0, 3)].into());
        member.heartbeat().await.unwrap();
        member.leave().await.unwrap();
        commit(&mut progress, &[(0, 5)].into()).await;
        assert_eq!(committed_offsets(&settings, &group, &topic, 1).await.unwrap(), [(0, 5)].into());
    });
}
