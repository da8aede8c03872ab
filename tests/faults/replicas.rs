//! Several replicas of patient-service.

use std::time::{Duration, Instant};

use testbed::{Signal, broker::Kind, service::Service, system::System, until, writers::Writers};

use crate::support::{TIMEOUT, metric, stop_and_audit, system};

testbed::on_each_broker!(events_stay_in_order_when_lease_holders_freeze_and_die, two_replicas_share_the_work);

/// `RELAY_LEASE` in these tests.
const LEASE: Duration = Duration::from_secs(1);
const SETTINGS: [(&str, &str); 1] = [("RELAY_LEASE", "1s")];

fn events_stay_in_order_when_lease_holders_freeze_and_die(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 3, &SETTINGS).await;
        let writers = Writers::start(&addresses(&system), 6);
        let faults = [Signal::STOP, Signal::KILL, Signal::STOP, Signal::STOP];
        for fault in faults {
            writers.until(writers.acknowledged().count() + 20, TIMEOUT).await.unwrap();
            let holder = holder(&system, None).await;
            let injected = Instant::now();
            system.patients[holder].process().signal(fault);
            let follower = self::holder(&system, Some(holder)).await;
            assert!(injected.elapsed() < LEASE * 5, "{follower} took over after {:?}", injected.elapsed());
            match fault {
                Signal::STOP => system.patients[holder].process().signal(Signal::CONT),
                _ => {
                    system.patients[holder].process().kill().await;
                    system.restart(|system| &mut system.patients[holder]).await.unwrap();
                }
            }
        }
        let (_, with_faults) = stop_and_audit(writers, &system).await;
        assert!(with_faults.acknowledged > 80, "{with_faults}");
        // So far the number of duplicates means nothing: with a slow broker, many events are in flight at each fault. After the
        // faults, relays that all published would duplicate every event; a lease that moves duplicates a few.
        let writers = Writers::start(&addresses(&system), 6);
        writers.until(60, TIMEOUT).await.unwrap();
        let (_, total) = stop_and_audit(writers, &system).await;
        let (events, duplicates) = (total.events - with_faults.events, total.duplicates - with_faults.duplicates);
        assert!(events > 60 && duplicates * 2 < events, "{duplicates} of {events} duplicated\n{total}");
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

/// The replica that holds the lease, other than the one with the fault.
async fn holder(system: &System, except: Option<usize>) -> usize {
    let mut holder = None;
    until("a replica holds the lease", async || {
        for (number, service) in system.patients.iter().enumerate().filter(|(number, _)| Some(*number) != except) {
            if metric(service, "relay_leases_held").await == Some(1.0) {
                holder = Some(number);
            }
        }
        holder.is_some()
    })
    .await;
    holder.unwrap()
}
