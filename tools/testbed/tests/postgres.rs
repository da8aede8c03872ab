//! A cluster whose start is interrupted.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;

use testbed::{
    Scratch,
    postgres::{Cluster, Durability},
    until,
};

#[test]
fn a_cluster_starts_after_its_first_start_was_interrupted() {
    smol::block_on(async {
        for durability in [Durability::Disk, Durability::Process] {
            let scratch = Scratch::new().unwrap();
            let directory = scratch.path().join("postgres");
            let starts = async { drop(Cluster::start(&directory, durability).await.unwrap()) };
            let begun = until("initdb has begun", async || {
                let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
                entries.into_iter().any(|entry| entry.path().join("PG_VERSION").is_file())
            });
            // What ends first cancels the other: initdb is killed.
            smol::future::or(begun, starts).await;
            let mut cluster = Cluster::start(&directory, durability).await.unwrap();
            cluster.run("postgres", "create table t (id int)").await.unwrap();
            cluster.stop().await;
        }
    });
}
