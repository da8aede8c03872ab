//! A database that goes away and comes back.

use std::time::{Duration, Instant};

use grpc::Code;
use testbed::{
    Scratch, Signal,
    postgres::{Cluster, Durability},
};
use uuid::Uuid;

use crate::harness::Harness;

#[test]
fn without_its_database_it_is_unavailable_in_time_and_recovers_by_itself() {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
        scratch.guard(cluster.process()).unwrap();
        let billing = Harness::start(&cluster.url("postgres")).await;
        billing.until_serving().await;
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
