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
use testbed::http::Client;

use crate::{
    outside::{Counts, Outside},
    stack,
    support::{path, patient, unique, until},
};

const WRITERS: usize = 4;
/// Patients registered before the fault, and once more after it.
const PATIENTS: usize = 20;
/// What a client waits between two patients, so that the test is about faults and not about load.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a client tries again. `up` takes a part of it.
const CLIENT_PATIENCE: Duration = Duration::from_secs(180);

/// Kills a part and brings it back by `up`, while clients register patients and try again until they are told that it
/// is done: each patient is stored, billed and counted once.
pub(crate) async fn of_a_killed(part: &'static str, system: &Outside) {
    let (before, stored_before) = (system.counts().await, system.stored().await);
    let written = Arc::new(AtomicUsize::new(0));
    let enough = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (client, written, enough) = (system.patients.clone(), written.clone(), enough.clone());
            runtime::spawn(async move {
                let mut registered = Vec::new();
                while !enough.load(Ordering::Relaxed) {
                    registered.push(register_surely(&client).await);
                    written.fetch_add(1, Ordering::Relaxed);
                    smol::Timer::after(PAUSE).await;
                }
                registered
            })
        })
        .collect();
    let reached = async |goal: usize| until("clients write", async || written.load(Ordering::Relaxed) >= goal).await;
    reached(PATIENTS).await;
    smol::unblock(move || stack(&["kill", part])).await;
    // What runs is what is tested: a build would take the checkout as it is now, and its time from the clients.
    smol::unblock(|| stack(&["up", "--no-build"])).await;
    reached(written.load(Ordering::Relaxed) + PATIENTS).await;
    enough.store(true, Ordering::Relaxed);

    let mut registered = Vec::new();
    for writer in writers {
        registered.extend(writer.await);
    }
    let count = registered.len() as i64;
    assert_eq!(system.stored().await - stored_before, count, "{part} was killed");
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

/// Sends the same request, under the same key, until it is answered with success.
async fn register_surely(client: &Client) -> Json {
    let (body, key) = (patient("Jane Doe"), format!("{:016x}", unique()));
    let end = Instant::now() + CLIENT_PATIENCE;
    loop {
        let answer = client.send(Method::Post, "/patients", &[("idempotency-key", &key)], Some(&body)).await;
        match answer {
            Ok(answer) if answer.status == 201 => return answer.json(),
            // Away, or a balancer before it that finds nobody, or the first attempt is still at work.
            Ok(answer) => assert!([409, 502, 503, 504].contains(&answer.status), "{}", answer.text()),
            Err(_) => {}
        }
        assert!(Instant::now() < end, "the service does not come back");
        smol::Timer::after(Duration::from_millis(50)).await;
    }
}
