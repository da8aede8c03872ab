//! One service's clock is an hour off.

use std::{path::Path, process::Command, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use testbed::{audit::Acknowledged, broker::Kind, service::Service, system::System};

use crate::support::{PATIENCE, analytics, audit, id, metric, patient, patients, register, system, until};

testbed::on_each_broker!(an_hour_off_versions_decide_and_no_time);

/// Moves the clock of the calendar, not the one that deadlines are measured by. `cc` is there wherever Rust links.
const SHIFT: &str = r"
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += SECONDS;
    return result;
}";

fn an_hour_off_versions_decide_and_no_time(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 2, &[("RELAY_LEASE", "1s")]).await;
        let directory = system.directory().to_owned();
        let (ahead, behind) = (shift(&directory, 3600), shift(&directory, -3600));
        relaunch(&mut system, patients, &ahead).await;
        relaunch(&mut system, analytics, &behind).await;
        let acknowledged = Acknowledged::default();
        let (fast, right) = (system.patients[0].client(), system.patients[1].client());

        // A later change seems to be an hour older than the one before.
        let jane = register(&fast, &acknowledged).await;
        let path = format!("/patients/{}", id(&jane));
        for (version, client) in [(2, &right), (3, &fast), (4, &right)] {
            let answer = client.put(&path, &patient()).await.unwrap();
            assert_eq!(answer.header("etag"), Some(format!("\"{version}\"").as_str()), "{}", answer.text());
            acknowledged.stored(id(&jane), version);
        }
        audit(&system, &acknowledged).await;
        let summary = system.until_summary(PATIENCE, |_| true).await.unwrap();
        let counts = ["activePatients", "created", "updated"].map(|name| summary[name].clone());
        assert_eq!(counts, [json!(1), json!(1), json!(3)]);
        let last: DateTime<Utc> = summary["lastEventTime"].as_str().unwrap().parse().unwrap();
        assert!(last - Utc::now() > TimeDelta::minutes(50), "the clock is off: {last}");

        // Neither does a lease last an hour longer, nor a key an hour less.
        until("one of them has the lease", async || {
            metric(&system.patients[0], "relay_leases_held").await == Some(1.0)
                || metric(&system.patients[1], "relay_leases_held").await == Some(1.0)
        })
        .await;
        for survivor in [1, 0] {
            system.patients[1 - survivor].process().kill().await;
            register(&system.patients[survivor].client(), &acknowledged).await;
            let started = std::time::Instant::now();
            audit(&system, &acknowledged).await;
            assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
            system.restart(|system| &mut system.patients[1 - survivor]).await.unwrap();
        }
    });
}

/// A library that moves the clock of the process that it is loaded into.
fn shift(directory: &Path, seconds: i64) -> String {
    let (source, library) = (directory.join("shift.c"), directory.join(format!("shift{seconds}.so")));
    std::fs::write(&source, SHIFT).unwrap();
    let define = format!("-DSECONDS={seconds}");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", &define, "-o"]).arg(&library).arg(&source);
    assert!(command.status().unwrap().success());
    library.display().to_string()
}

async fn relaunch(system: &mut System, which: fn(&mut System) -> &mut Service, library: &str) {
    let preload = ("LD_PRELOAD".to_owned(), library.to_owned());
    let relaunched = system.relaunch(which, |mut launch| {
        launch.environment.push(preload);
        launch.start()
    });
    relaunched.await.unwrap();
    which(system).until_ready().await.unwrap();
}
