//! A service is killed while clients write.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use surf::http::Method;
use testbed::{http::Client, until};

use crate::{
    running_system::{Counts, RunningSystem},
    stack,
    support::{path, patient, unique},
    up_again,
};

const WRITERS: usize = 4;
/// Patients that are registered before the fault, and again after it.
const PATIENTS: usize = 20;
/// The pause between two patients, so that the load is low.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a client repeats a request. It includes the time of `up`.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(180);

/// Kills a service and starts it again by `up`, while clients register patients and repeat each request until it succeeds:
/// each patient is stored, billed and counted once.
pub(crate) async fn of_a_killed(component: &'static str, system: &RunningSystem) {
    let (before, stored_before) = (system.counts().await, system.stored().await);
    let written = Arc::new(AtomicUsize::new(0));
    let enough = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (client, written, enough) = (system.patients.clone(), written.clone(), enough.clone());
            runtime::spawn(async move {
                let mut registered = Vec::new();
                while !enough.load(Ordering::Relaxed) {
                    registered.push(register_until_created(&client).await);
                    written.fetch_add(1, Ordering::Relaxed);
                    smol::Timer::after(PAUSE).await;
                }
                registered
            })
        })
        .collect();
    let reached = async |goal: usize| until("clients write", async || written.load(Ordering::Relaxed) >= goal).await;
    reached(PATIENTS).await;
    smol::unblock(move || stack(&["kill", component])).await;
    // A build could take a newer checkout, and would take time from the clients.
    smol::unblock(up_again).await;
    reached(written.load(Ordering::Relaxed) + PATIENTS).await;
    enough.store(true, Ordering::Relaxed);

    let mut registered = Vec::new();
    for writer in writers {
        registered.extend(writer.await);
    }
    let count = registered.len() as i64;
    assert_eq!(system.stored().await - stored_before, count, "{component} was killed");
    system.until_counted(before, Counts { active: count, created: count, ..Counts::default() }).await;
    for patient in &registered {
        assert_eq!(system.patients.get(&path(patient)).await.unwrap().status, 200);
        until("the account is there", async || {
            let account = system.patients.get(&format!("{}/billing", path(patient))).await.unwrap();
            account.status == 200 && account.json()["status"] == "ACTIVE"
        })
        .await;
    }
}

/// Sends the same request with the same key until it succeeds.
async fn register_until_created(client: &Client) -> Json {
    let (body, key) = (patient("Jane Doe"), format!("{:016x}", unique()));
    let end = Instant::now() + CLIENT_TIMEOUT;
    loop {
        let response = client.send(Method::Post, "/patients", &[("idempotency-key", &key)], Some(&body)).await;
        match response {
            Ok(response) if response.status == 201 => return response.json(),
            // Unavailable, also behind the balancer, or an earlier attempt is still running (409).
            Ok(response) => assert!([409, 502, 503, 504].contains(&response.status), "{}", response.text()),
            Err(_) => {}
        }
        assert!(Instant::now() < end, "the service does not come back");
        smol::Timer::after(Duration::from_millis(50)).await;
    }
}
