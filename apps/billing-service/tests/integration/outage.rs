//! Outages of the database.

use std::time::{Duration, Instant};

use grpc::Code;
use testbed::{
    Scratch, Signal,
    postgres::{Cluster, Durability},
    sql,
};
use uuid::Uuid;

use crate::harness::{CHARGE_30_000, Harness, LedgerReader};

/// The service on a PostgreSQL of its own, which the test can stop.
async fn with_own_cluster() -> (Scratch, Cluster, Harness) {
    let scratch = Scratch::new().unwrap();
    let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
    scratch.guard(cluster.process()).unwrap();
    let billing = Harness::start(&cluster.url("postgres")).await;
    billing.until_serving().await;
    (scratch, cluster, billing)
}

#[test]
fn without_its_database_it_is_unavailable_in_time_and_recovers_by_itself() {
    runtime::block_on(2, async {
        let (scratch, mut cluster, billing) = with_own_cluster().await;
        let patient = Uuid::now_v7();
        let opened = billing.create(patient, "Jane Doe").await.unwrap();

        cluster.process().signal_all(Signal::STOP);
        let started = Instant::now();
        assert_eq!(billing.create(patient, "Jane Doe").await, Err(Code::Unavailable));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        cluster.process().signal_all(Signal::CONT);
        billing.until_serving().await;

        cluster.process().signal_all(Signal::KILL);
        cluster.process().kill().await;
        assert_eq!(billing.get(patient).await, Err(Code::Unavailable));
        cluster.restart().await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        billing.until_serving().await;
        assert_eq!(billing.create(patient, "Jane Doe").await.unwrap(), opened);
        billing.stop().await;
    });
}

#[test]
fn a_list_that_loses_its_database_ends_with_an_error_and_never_with_ok() {
    runtime::block_on(2, async {
        let (scratch, mut cluster, billing) = with_own_cluster().await;
        let patient = Uuid::now_v7();
        billing.create(patient, "Jane Doe").await.unwrap();
        sql::execute(&billing.database, CHARGE_30_000).await.unwrap();
        for round in 0..4 {
            let mut reader = LedgerReader::open(billing.grpc, patient, 65_535).await;
            reader.begin().await;
            match round % 2 {
                // Killed while a page is read, or while the stream waits for the client.
                0 => smol::Timer::after(Duration::from_millis(fastrand::u64(..20))).await,
                _ => Instant::now(),
            };
            cluster.process().signal_all(Signal::KILL);
            cluster.process().kill().await;
            let end = reader.read_all().await;
            assert_eq!(end, Some(Code::Unavailable), "after {} entries", reader.entries);
            assert!(reader.entries < 30_000, "it was killed too late to test anything");
            cluster.restart().await.unwrap();
            scratch.guard(cluster.process()).unwrap();
            billing.until_serving().await;
        }
        // A frozen server costs the deadline, as for any other call.
        let mut reader = LedgerReader::open(billing.grpc, patient, 65_535).await;
        reader.begin().await;
        cluster.process().signal_all(Signal::STOP);
        assert_eq!(reader.read_all().await, Some(Code::Unavailable));
        cluster.process().signal_all(Signal::CONT);
        billing.stop().await;
    });
}
