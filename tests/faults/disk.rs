//! The disk with the state of analytics is full or read-only.
//!
//! The service runs in a new mount namespace with its own file system. If that is not allowed, `just test` skips these tests
//! and says so.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use testbed::{audit::Acknowledged, broker::Kind, system::System, until, writers::Writers};

use crate::support::{TIMEOUT, analytics, audit, logged, register_many, stop_and_audit, system, until_readiness};

testbed::on_each_broker!(
    in_a_namespace_a_full_disk_is_reported_and_counts_stay_correct,
    in_a_namespace_a_read_only_disk_is_reported
);

/// Mounts a small file system with the options in its first argument at the path in its second, then executes the rest.
const MOUNT: &str = r#"mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@""#;
const STATE_UNUSABLE: &str = "the state cannot be used; nothing is counted until it can";
const STATE_USABLE: &str = "the state can be used again";

fn in_a_namespace_a_full_disk_is_reported_and_counts_stay_correct(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 1, &[]).await;
        let state = restart_on_small_disk(&mut system, "size=16m").await;
        let writers = Writers::start(&[system.patients[0].address()], 6);
        writers.until(20, TIMEOUT).await.unwrap();
        let filler = fill(&state);
        until_readiness(&system.analytics, "state", 503, "DOWN").await;
        // The counts are those before, and do not change.
        let shown = system.until_summary(TIMEOUT, |_| true).await.unwrap();
        writers.until(writers.acknowledged().count() + 30, TIMEOUT).await.unwrap();
        let later = system.until_summary(TIMEOUT, |_| true).await.unwrap();
        assert_eq!((&later["activePatients"], &later["created"]), (&shown["activePatients"], &shown["created"]));
        let lines = || [STATE_UNUSABLE, STATE_USABLE].map(|message| logged(&system.analytics, message));
        assert_eq!(lines(), [1, 0], "it is opened again and again, and the outage goes on");

        fs::remove_file(&filler).unwrap();
        until_readiness(&system.analytics, "state", 200, "UP").await;
        stop_and_audit(writers, &system).await;
        assert_eq!(lines(), [1, 1]);
    });
}

fn in_a_namespace_a_read_only_disk_is_reported(kind: Kind) {
    runtime::block_on(2, async {
        let mut system = system(kind, 1, &[]).await;
        let acknowledged = Acknowledged::default();
        register_many(&system.patient_client(), &acknowledged, 5).await;
        restart_on_small_disk(&mut system, "ro").await;
        until_readiness(&system.analytics, "state", 503, "DOWN").await;
        assert_eq!(logged(&system.analytics, STATE_UNUSABLE), 1);
        let pid = system.analytics.process().pid().to_string();
        let place = disk(&system);
        let mut remount = Command::new("nsenter");
        remount
            .args(["--target", &pid, "--user", "--mount", "--preserve-credentials", "mount", "-o", "remount,rw"])
            .arg(&place);
        until("it is writable", async || remount.status().unwrap().success()).await;
        until_readiness(&system.analytics, "state", 200, "UP").await;
        // A thread of its own writes the lines.
        until("the end is logged", async || logged(&system.analytics, STATE_USABLE) == 1).await;
        assert_eq!(logged(&system.analytics, STATE_UNUSABLE), 1);
        audit(&system, &acknowledged).await;
    });
}

fn disk(system: &System) -> PathBuf {
    system.directory().join("disk")
}

/// Fills a disk completely, as another process may. Returns the file that has to be deleted.
pub(crate) fn fill(disk: &Path) -> PathBuf {
    let filler = disk.join("filler");
    let open = || fs::OpenOptions::new().append(true).create(true).open(&filler);
    for block in [1 << 16, 1 << 12, 1] {
        while std::io::Write::write_all(&mut open().unwrap(), &vec![0; block]).is_ok() {}
    }
    filler
}

/// Restarts analytics with its state on a small disk; returns a path by which this process can reach that disk.
pub(crate) async fn restart_on_small_disk(system: &mut System, options: &str) -> PathBuf {
    let place = disk(system);
    fs::create_dir(&place).unwrap();
    let words = place.display().to_string();
    let state = ("STATE_FILE".to_owned(), place.join("analytics.sqlite").display().to_string());
    let restarted = system.restart_with(analytics, |mut launch| {
        launch.environment.push(state);
        launch.start_with_wrapper(&["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", options, &words])
    });
    restarted.await.unwrap();
    let root = PathBuf::from(format!("/proc/{}/root", system.analytics.process().pid()));
    let inside = root.join(place.strip_prefix("/").unwrap_or(Path::new("")));
    until("it responds", async || system.analytics.client().get("/actuator/health/liveness").await.is_ok()).await;
    inside
}
