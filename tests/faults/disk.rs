//! The disk of analytics' state is full, or cannot be written to.
//!
//! The service gets a file system of its own, in a mount namespace that nobody else sees and that ends with it. Where
//! that is not allowed, `just test` says so and leaves these tests out.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use testbed::{audit::Acknowledged, broker::Kind, system::System, writers::Writers};

use crate::support::{
    TIMEOUT, analytics, audit, logged, register_many, stop_and_audit, system, until, until_readiness,
};

testbed::on_each_broker!(
    in_a_namespace_a_full_disk_is_told_and_counts_nothing_wrong,
    in_a_namespace_a_read_only_disk_is_told
);

/// Mounts a small file system with the options and at the place of its first two arguments, then becomes the rest.
const MOUNT: &str = r#"mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@""#;
const TROUBLE: &str = "the state cannot be used; nothing is counted until it can";

fn in_a_namespace_a_full_disk_is_told_and_counts_nothing_wrong(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 1, &[]).await;
        let state = on_a_small_disk(&mut system, "size=16m").await;
        let writers = Writers::start(&[system.patients[0].address()], 6);
        writers.until(20, TIMEOUT).await.unwrap();
        // Somebody else fills it up to the last page.
        let filler = state.join("filler");
        let fill = || fs::OpenOptions::new().append(true).create(true).open(&filler);
        for block in [1 << 16, 1 << 12, 1] {
            while std::io::Write::write_all(&mut fill().unwrap(), &vec![0; block]).is_ok() {}
        }
        until_readiness(&system.analytics, "state", 503, "DOWN").await;
        assert!(logged(&system.analytics, TROUBLE) > 0);
        // What is shown is what was counted, and it does not move.
        let shown = system.until_summary(TIMEOUT, |_| true).await.unwrap();
        writers.until(writers.acknowledged().count() + 30, TIMEOUT).await.unwrap();
        let later = system.until_summary(TIMEOUT, |_| true).await.unwrap();
        assert_eq!((&later["activePatients"], &later["created"]), (&shown["activePatients"], &shown["created"]));

        fs::remove_file(&filler).unwrap();
        until_readiness(&system.analytics, "state", 200, "UP").await;
        stop_and_audit(writers, &system).await;
        assert!(logged(&system.analytics, "the state can be used again") > 0);
    });
}

fn in_a_namespace_a_read_only_disk_is_told(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 1, &[]).await;
        let acknowledged = Acknowledged::default();
        register_many(&system.patient_client(), &acknowledged, 5).await;
        on_a_small_disk(&mut system, "ro").await;
        until_readiness(&system.analytics, "state", 503, "DOWN").await;
        assert_eq!(logged(&system.analytics, TROUBLE), 1);
        let pid = system.analytics.process().pid().to_string();
        let place = disk(&system);
        let mut remount = Command::new("nsenter");
        remount
            .args(["--target", &pid, "--user", "--mount", "--preserve-credentials", "mount", "-o", "remount,rw"])
            .arg(&place);
        until("it is writable", async || remount.status().unwrap().success()).await;
        until_readiness(&system.analytics, "state", 200, "UP").await;
        audit(&system, &acknowledged).await;
    });
}

fn disk(system: &System) -> PathBuf {
    system.directory().join("disk")
}

/// Starts analytics anew with its state on a disk of its own; gives the way to that disk from outside.
async fn on_a_small_disk(system: &mut System, options: &str) -> PathBuf {
    let place = disk(system);
    fs::create_dir(&place).unwrap();
    let words = place.display().to_string();
    let state = ("STATE_FILE".to_owned(), place.join("analytics.sqlite").display().to_string());
    let relaunched = system.relaunch(analytics, |mut launch| {
        launch.environment.push(state);
        launch.start_by(&["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", options, &words])
    });
    relaunched.await.unwrap();
    let root = PathBuf::from(format!("/proc/{}/root", system.analytics.process().pid()));
    let inside = root.join(place.strip_prefix("/").unwrap_or(Path::new("")));
    until("it answers", async || system.analytics.client().get("/actuator/health/liveness").await.is_ok()).await;
    inside
}
