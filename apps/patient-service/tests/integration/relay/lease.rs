//! One relay at a time publishes, and a dead one is replaced.

use testbed::until;

use super::*;

testbed::on_each_broker!(one_relay_sends_and_another_takes_over,);

fn one_relay_sends_and_another_takes_over(kind: broker::Kind) {
    runtime::block_on(2, async move {
        let (kafka, topic) = (testbed::shared_broker(kind).await, unique_topic());
        kafka::create_topic(&kafka, &topic, 3).await.unwrap();
        let service = service_without_relay().await;
        let (mut first, mut second) =
            (relay(&service, settings(kafka.clone(), &topic)), relay(&service, settings(kafka.clone(), &topic)));
        service.register("Jane Doe").await;
        take_lease(&service, &first).await;
        assert!(!second.acquire_or_renew_lease().await.unwrap());
        assert!(matches!(second.step().await, Err(StepError::NotLeased)));
        assert_eq!(first.step().await.unwrap(), Step { read: 1, published: 1 });

        // The first is frozen: it does not renew its lease, and the second takes it over.
        until("the lease has run out", async || second.acquire_or_renew_lease().await.unwrap()).await;
        assert!(matches!(first.step().await, Err(StepError::NotLeased)), "it knows by its own clock");
        service.register("John Doe").await;
        assert_eq!(second.step().await.unwrap(), Step { read: 1, published: 1 });
        service.stop().await;
    });
}

/// PostgreSQL's clock was set back or forward after the holder died, so that `expires_at` has no meaning.
#[test]
fn the_lease_of_a_dead_holder_is_taken_over_after_its_duration_whatever_its_expiry() {
    runtime::block_on(2, async {
        let service = service_without_relay().await;
        let lease = Duration::from_secs(1);
        let dead = [
            "UPDATE relay_leases SET holder = gen_random_uuid(), expires_at = now() + interval '59 minutes'",
            "UPDATE relay_leases SET holder = gen_random_uuid(), expires_at = now() + interval '3 days'",
            "UPDATE relay_leases SET holder = gen_random_uuid(), expires_at = 'infinity'",
            "UPDATE relay_leases SET holder = gen_random_uuid(), expires_at = now() - interval '3 days'",
        ];
        for dead in dead {
            let relay = relay(&service, Settings { lease, ..settings(no_broker(), "none") });
            execute(&service, dead).await;
            let started = Instant::now();
            assert!(!relay.acquire_or_renew_lease().await.unwrap(), "it may be alive: {dead}");
            until("it is taken over", async || relay.acquire_or_renew_lease().await.unwrap()).await;
            let took = started.elapsed();
            assert!(took >= lease && took < lease + Duration::from_secs(2), "{took:?}: {dead}");
        }
        service.stop().await;
    });
}

/// PostgreSQL's clock was set forward while the holder renews its lease.
#[test]
fn a_renewed_lease_stays_with_its_holder_whatever_its_expiry() {
    runtime::block_on(2, async {
        let service = service_without_relay().await;
        let lease = Duration::from_secs(2);
        let relays = [0, 1].map(|_| relay(&service, Settings { lease, ..settings(no_broker(), "none") }));
        take_lease(&service, &relays[0]).await;
        let end = Instant::now() + lease * 3;
        while Instant::now() < end {
            execute(&service, "UPDATE relay_leases SET expires_at = now() - interval '1 hour'").await;
            assert!(!relays[1].acquire_or_renew_lease().await.unwrap());
            assert!(relays[0].acquire_or_renew_lease().await.unwrap());
            smol::Timer::after(Duration::from_millis(100)).await;
        }
        service.stop().await;
    });
}

/// Otherwise a gauge of 0 would hide that events wait for as long as the lease lasts.
#[test]
fn the_backlog_is_reported_while_nobody_renews_the_lease() {
    runtime::block_on(2, async {
        let service = service_without_relay().await;
        for n in 0..7 {
            service.register(&format!("Patient {n}")).await;
        }
        let pending = async || service.get("/metrics").await.text().contains("outbox_pending{shard=\"0\"} 7\n");
        until("the outbox is told", pending).await;
        service.stop().await;
    });
}
