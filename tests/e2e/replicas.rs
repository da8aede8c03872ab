//! All replicas of the services.

use std::collections::BTreeSet;

use testbed::http::Client;

use crate::{
    running_system::{Counts, RunningSystem},
    support::register,
};

const WRITERS: usize = 8;
const PATIENTS_EACH: usize = 15;

/// Every replica handles some of the requests, each partition is read by one analytics-service, and each patient is stored,
/// billed and counted once.
pub(crate) async fn of_all_replicas(system: &RunningSystem) {
    let (counts, stored) = (system.counts().await, system.stored().await);
    let posts =
        async |client: &Client| metric(client, "http_requests_total", &["method=\"POST\"", "status=\"201\""]).await;
    let accounts = async |client: &Client| {
        metric(client, "grpc_server_calls_total", &["code=\"ok\"", "method=\"BillingService/CreateBillingAccount\""])
            .await
    };
    let mut before = Vec::new();
    for client in &system.replicas {
        before.push(posts(client).await);
    }
    for client in &system.billing {
        before.push(accounts(client).await);
    }

    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let client = system.patients.clone();
            runtime::spawn(async move {
                for n in 0..PATIENTS_EACH {
                    let patient = register(&client, &format!("Patient {writer} {n}")).await;
                    assert_eq!(patient["billing"]["status"], "ACTIVE");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await;
    }
    let count = (WRITERS * PATIENTS_EACH) as i64;
    system.until_counted(counts, Counts { active: count, created: count, ..Counts::default() }).await;
    assert_eq!(system.stored().await - stored, count);

    let mut before = before.into_iter();
    let mut shares = Vec::new();
    for client in &system.replicas {
        shares.push(posts(client).await - before.next().unwrap());
    }
    let mut billed = Vec::new();
    for client in &system.billing {
        billed.push(accounts(client).await - before.next().unwrap());
    }
    println!("requests of each patient-service: {shares:?}; accounts opened by each billing-service: {billed:?}");
    assert_eq!(shares.iter().sum::<f64>(), count as f64);
    assert!(shares.iter().all(|share| *share > 0.0), "{shares:?}");
    assert_eq!(billed.iter().sum::<f64>(), count as f64);
    assert!(billed.iter().all(|share| *share > 0.0), "{billed:?}");

    let mut partitions = BTreeSet::new();
    for client in &system.analytics {
        let summary = client.get("/analytics/summary?scope=instance").await.unwrap().json();
        let own = summary["partitions"].as_array().unwrap();
        assert!(!own.is_empty());
        for partition in own {
            assert!(partitions.insert(partition["partition"].as_i64().unwrap()), "{partition} belongs to two");
        }
    }
}

/// The sum of a metric over the series that have these labels.
async fn metric(client: &Client, name: &str, labels: &[&str]) -> f64 {
    let text = client.get("/metrics").await.unwrap().text();
    let series = text.lines().filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}
