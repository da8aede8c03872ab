//! What a member of a consumer group requests of its coordinator.

use std::{ops::RangeInclusive, sync::Mutex};

use kafka::{Member, Subscription};
use kafka_protocol::{
    messages::{FindCoordinatorResponse, JoinGroupRequest, JoinGroupResponse, SyncGroupResponse},
    protocol::StrBytes,
};
use smol::Task;

use super::{
    broker::{any_broker, supporting},
    *,
};

const VERSIONS: [(ApiKey, RangeInclusive<i16>); 5] = [
    (ApiKey::ApiVersions, 0..=4),
    (ApiKey::Metadata, 4..=4),
    (ApiKey::FindCoordinator, 1..=1),
    (ApiKey::JoinGroup, 5..=5),
    (ApiKey::SyncGroup, 3..=3),
];

/// A broker that coordinates every group and gives members no partition, and its last request to join.
async fn coordinator() -> (HostPort, Task<()>, Arc<Mutex<JoinGroupRequest>>) {
    let requested = Arc::<Mutex<JoinGroupRequest>>::default();
    let port = Arc::new(AtomicU16::new(0));
    let (last, own_port) = (requested.clone(), port.clone());
    let (address, task) = any_broker(move |received| match received.key {
        ApiKey::ApiVersions => received.response(&supporting(&VERSIONS)),
        ApiKey::Metadata => metadata_response(received.correlation, "127.0.0.1", own_port.load(SeqCst)),
        ApiKey::FindCoordinator => {
            let coordinator = FindCoordinatorResponse::default().with_host(StrBytes::from_static_str("127.0.0.1"));
            received.response(&coordinator.with_port(own_port.load(SeqCst).into()))
        }
        ApiKey::JoinGroup => {
            *last.lock().unwrap() = received.decode();
            let joined = JoinGroupResponse::default()
                .with_protocol_name(Some(StrBytes::from_static_str("sticky-by-state")))
                .with_leader(StrBytes::from_static_str("leader"))
                .with_member_id(StrBytes::from_static_str("member"));
            received.response(&joined)
        }
        _ => received.response(&SyncGroupResponse::default()),
    })
    .await;
    port.store(address.port, SeqCst);
    (address, task, requested)
}

#[test]
fn a_generation_begins_not_before_the_session_of_a_member_that_does_not_join_has_ended() {
    runtime::block_on(2, async {
        let (coordinator, _coordinator, requested) = coordinator().await;
        for (session_seconds, rebalance_seconds) in [(6, 30), (30, 30), (60, 60)] {
            let session_timeout = Duration::from_secs(session_seconds);
            let mut member = Member::new(settings(vec![coordinator.clone()]), "group", "topic", None, session_timeout);
            member.join(&Subscription::default()).await.unwrap();
            let requested = requested.lock().unwrap();
            let timeouts = (requested.session_timeout_ms, requested.rebalance_timeout_ms);
            assert_eq!(timeouts, (session_seconds as i32 * 1000, rebalance_seconds * 1000));
        }
    });
}
