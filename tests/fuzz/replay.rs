//! Every input that is kept, and for targets whose input has a structure random ones, without libFuzzer.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{collections::BTreeSet, fs, iter::repeat_with, path::Path};

use arbitrary::{Arbitrary, Unstructured};
use fastrand::Rng;

/// Random inputs for each target, and the bytes that they are made of.
const RANDOM: usize = 300;
const BYTES: usize = 600;

/// The contents of the files of a folder, below that of this crate; none if it is not there.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let Ok(files) = fs::read_dir(&folder) else { return Vec::new() };
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

/// What is kept for a target that is not given random bytes.
fn kept(folders: &[&str]) -> Vec<Vec<u8>> {
    let inputs: Vec<_> = folders.iter().flat_map(|folder| files(folder)).collect();
    assert!(!inputs.is_empty(), "nothing is in {folders:?}");
    inputs
}

/// Random inputs, the same ones each time.
fn random() -> impl Iterator<Item = Vec<u8>> {
    random_of(BYTES).take(RANDOM)
}

fn random_of(bytes: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut random = Rng::with_seed(7);
    repeat_with(move || repeat_with(|| random.u8(..)).take(bytes).collect())
}

fn structured<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> T {
    T::arbitrary_take_rest(Unstructured::new(bytes)).unwrap()
}

#[test]
fn http_bytes() {
    for bytes in kept(&["seeds/http_bytes"]) {
        // Each beginning of it too: a client can break off anywhere.
        (0..=bytes.len()).for_each(|end| fuzz::http_bytes::check(&bytes[..end]));
    }
}

#[test]
fn http_requests() {
    let inputs = random().chain(files("seeds/http_requests"));
    inputs.for_each(|bytes| fuzz::http_requests::check(structured(&bytes)));
}

#[test]
fn patient_body() {
    kept(&["seeds/patient_body"]).iter().for_each(|bytes| fuzz::patient_body::check(bytes));
}

#[test]
fn patient_list() {
    kept(&["seeds/patient_list"]).iter().for_each(|bytes| fuzz::patient_list::check(bytes));
}

#[test]
fn patient_requests() {
    // Each is a single request, so that there are more of them.
    let inputs = random_of(100).take(10 * RANDOM).chain(files("seeds/patient_requests"));
    inputs.for_each(|bytes| fuzz::patient_requests::check(structured(&bytes)));
}

#[test]
fn event() {
    let folders = ["../../libs/codec/tests/golden", "seeds/event"];
    kept(&folders).iter().for_each(|bytes| fuzz::event::check(bytes));
}

#[test]
fn dead_letter() {
    let inputs = random().chain(files("seeds/dead_letter"));
    inputs.for_each(|bytes| fuzz::dead_letter::check(structured(&bytes)));
}

#[test]
fn records() {
    use fuzz::records::Outcome::{Aborted, Committed, Malformed, TooLarge, Unreadable};
    let inputs = random().chain(kept(&["seeds/records"]));
    let seen: BTreeSet<_> = inputs.flat_map(|bytes| fuzz::records::check(structured(&bytes))).collect();
    assert!(seen.iter().eq(&[Aborted, Committed, TooLarge, Unreadable, Malformed]), "what is read is {seen:?} alone");
}
