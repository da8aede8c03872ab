//! The partition of a key, which the relay computes once for each event.

use divan::black_box;
use kafka::partitioner::{key_hash, of_hash};

fn main() {
    divan::main();
}

#[divan::bench]
fn partition_of_a_key() -> i32 {
    of_hash(key_hash(black_box(b"0190a4c8-9a3b-7c1d-8e2f-3a4b5c6d7e8f")), 12)
}
