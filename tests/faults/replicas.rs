//! Several patient-services at once.

use std::time::{Duration, Instant};

use testbed::{Signal, broker::Kind, service::Service, system::System, writers::Writers};

use crate::support::{TIMEOUT, metric, stop_and_audit, system, until};

testbed::on_each_broker!(
    with_three_replicas_whose_lease_holders_freeze_and_die_order_holds,
    two_replicas_share_the_work
);

/// `RELAY_LEASE` here.
const LEASE: Duration = Duration::from_secs(1);
const SETTINGS: [(&str, &str); 1] = [("RELAY_LEASE", "1s")];

fn with_three_replicas_whose_lease_holders_freeze_and_die_order_holds(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 3, &SETTINGS).await;
        let writers = Writers::start(&addresses(&system), 6);
        let faults = [Signal::STOP, Signal::KILL, Signal::STOP, Signal::STOP];
        for fault in faults {
            writers.until(writers.acknowledged().count() + 20, TIMEOUT).await.unwrap();
            let holder = holder(&system, None).await;
            let struck = Instant::now();
            system.patients[holder].process().signal(fault);
            let follower = self::holder(&system, Some(holder)).await;
            assert!(struck.elapsed() < LEASE * 5, "{follower} follows after {:?}", struck.elapsed());
            match fault {
                Signal::STOP => system.patients[holder].process().signal(Signal::CONT),
                _ => {
                    system.patients[holder].process().kill().await;
                    system.restart(|system| &mut system.patients[holder]).await.unwrap();
                }
            }
        }
        let (_, struck) = stop_and_audit(writers, &system).await;
        assert!(struck.acknowledged > 80, "{struck}");
        // How many events were repeated tells nothing so far: a slow broker has many of them under way at each fault. After
        // the faults, relays that all send would repeat each event more than once; a lease that moves, a few.
        let writers = Writers::start(&addresses(&system), 6);
        writers.until(60, TIMEOUT).await.unwrap();
        let (_, quiet) = stop_and_audit(writers, &system).await;
        let (events, repeated) = (quiet.events - struck.events, quiet.duplicates - struck.duplicates);
        assert!(events > 60 && repeated * 2 < events, "{repeated} of {events} repeated\n{quiet}");
    });
}

fn two_replicas_share_the_work(kind: Kind) {
    runtime::block_on(2, async {
        let system = system(kind, 2, &[]).await;
        let writers = Writers::start(&addresses(&system), 6);
        writers.until(200, TIMEOUT).await.unwrap();
        let (written, report) = stop_and_audit(writers, &system).await;
        assert_eq!((written.unanswered, report.duplicates), (0, 0), "{written}\n{report}");
        for service in &system.patients {
            assert!(
                metric(service, "http_requests_total{method=\"POST\",route=\"/patients\",status=\"201\"}").await
                    > Some(50.0)
            );
        }
    });
}

fn addresses(system: &System) -> Vec<String> {
    system.patients.iter().map(Service::address).collect()
}

/// The replica that holds the lease, other than the one that was struck.
async fn holder(system: &System, struck: Option<usize>) -> usize {
    let mut holder = None;
    until("a replica holds the lease", async || {
        for (number, service) in system.patients.iter().enumerate().filter(|(number, _)| Some(*number) != struck) {
            if metric(service, "relay_leases_held").await == Some(1.0) {
                holder = Some(number);
            }
        }
        holder.is_some()
    })
    .await;
    holder.unwrap()
}
