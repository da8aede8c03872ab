//! Runs the fuzz targets without libFuzzer: with every seed, and with random inputs if the input is structured.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{collections::BTreeSet, fs, iter::repeat_with, path::Path};

use arbitrary::{Arbitrary, Unstructured};
use fastrand::Rng;

/// The number of random inputs for each target, and their length in bytes.
const RANDOM_INPUTS: usize = 300;
const RANDOM_BYTES: usize = 600;

/// The contents of the files in a folder of this crate; none if it does not exist.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let Ok(files) = fs::read_dir(&folder) else { return Vec::new() };
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

/// The seeds of a target.
fn seeds(folders: &[&str]) -> Vec<Vec<u8>> {
    let inputs: Vec<_> = folders.iter().flat_map(|folder| files(folder)).collect();
    assert!(!inputs.is_empty(), "there are no files in {folders:?}");
    inputs
}

/// Random inputs, the same in every run.
fn random() -> impl Iterator<Item = Vec<u8>> {
    random_of(RANDOM_BYTES).take(RANDOM_INPUTS)
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
    for bytes in seeds(&["seeds/http_bytes"]) {
        // Every prefix too: a client can disconnect anywhere.
        (0..=bytes.len()).for_each(|end| fuzz::http_bytes::check(&bytes[..end]));
    }
}

#[test]
fn http_requests() {
    // More inputs, because few of them have a body that is not read and arrives after its response.
    let inputs = random_of(RANDOM_BYTES).take(10 * RANDOM_INPUTS).chain(files("seeds/http_requests"));
    inputs.for_each(|bytes| fuzz::http_requests::check(structured(&bytes)));
}

#[test]
fn patient_body() {
    seeds(&["seeds/patient_body"]).iter().for_each(|bytes| fuzz::patient_body::check(bytes));
}

#[test]
fn patient_list() {
    seeds(&["seeds/patient_list"]).iter().for_each(|bytes| fuzz::patient_list::check(bytes));
}

#[test]
fn patient_requests() {
    // More inputs, because each is a single request.
    let inputs = random_of(100).take(10 * RANDOM_INPUTS).chain(files("seeds/patient_requests"));
    inputs.for_each(|bytes| fuzz::patient_requests::check(structured(&bytes)));
}

#[test]
fn event() {
    let folders = ["../../libs/codec/tests/golden", "seeds/event"];
    seeds(&folders).iter().for_each(|bytes| fuzz::event::check(bytes));
}

#[test]
fn dead_letter() {
    let inputs = random().chain(files("seeds/dead_letter"));
    inputs.for_each(|bytes| fuzz::dead_letter::check(structured(&bytes)));
}

#[test]
fn records() {
    use fuzz::records::ReadOutcome::{Aborted, Committed, Malformed, TooLarge, Unreadable};
    let inputs = random().chain(seeds(&["seeds/records"]));
    let outcomes: BTreeSet<_> = inputs.flat_map(|bytes| fuzz::records::check(structured(&bytes))).collect();
    assert!(
        outcomes.iter().eq(&[Aborted, Committed, TooLarge, Unreadable, Malformed]),
        "the inputs cover {outcomes:?} alone"
    );
}
