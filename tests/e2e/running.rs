//! A system that is up, from outside: `just e2e` runs these tests when `just up` has been run, natively or in containers.
//!
//! Other patients may be there already, but nobody else may use the system meanwhile. `stack target` says where it is.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod faults;
mod journey;
mod outside;
mod privacy;
mod replicas;
mod support;
mod traces;

use std::{
    env,
    process::Command,
    sync::{Mutex, MutexGuard},
};

use outside::Outside;
use testbed::http::Client;

/// One test at a time: each counts what it did itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Where everything is now. A container that was started again may have another port.
fn system() -> Outside {
    let target = stack(&["target"]);
    let clients = |name: &str| -> Vec<Client> {
        let address =
            |word: &str| word.split_once('=').filter(|(known, _)| *known == name).map(|(_, list)| list.to_owned());
        let list = target.split_whitespace().find_map(address).unwrap_or_else(|| panic!("no {name} in {target}"));
        list.split(',').map(Client::new).collect()
    };
    Outside {
        patients: clients("PATIENTS").remove(0),
        replicas: clients("PATIENT_REPLICAS"),
        billing: clients("BILLING"),
        analytics: clients("ANALYTICS"),
        log: Box::new(|part| stack(&["logs", "--all", part])),
    }
}

/// Runs the program behind the recipes, in the checkout that the system belongs to.
fn stack(words: &[&str]) -> String {
    let program = env::var("E2E_STACK").expect("E2E_STACK is not set: run just e2e");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let output = Command::new(program).args(words).current_dir(root).output().unwrap();
    assert!(output.status.success(), "stack {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs a system that is up: just e2e"]
fn a_patient_travels_all_the_way() {
    let _alone = alone();
    runtime::block_on(2, journey::of_one_patient(&system()));
}

#[test]
#[ignore = "needs a system that is up: just e2e"]
fn many_patients_are_stored_billed_and_counted_once() {
    let _alone = alone();
    runtime::block_on(2, journey::of_many_patients(&system()));
}

#[test]
#[ignore = "needs a system that is up: just e2e"]
fn one_trace_from_the_request_to_billing() {
    let _alone = alone();
    let lines = [("patient-service", "patient registered"), ("billing-service", "account opened")];
    runtime::block_on(2, traces::of_a_registration(&system(), &lines));
}

#[test]
#[ignore = "needs a system that is up: just e2e"]
fn a_marked_patient_leaves_no_mark() {
    let _alone = alone();
    runtime::block_on(2, privacy::of_a_marked_patient(&system()));
}

#[test]
#[ignore = "needs a system that is up: just e2e"]
fn a_service_that_is_killed_loses_nothing() {
    let _alone = alone();
    runtime::block_on(2, async {
        for part in ["billing-service", "analytics-service", "patient-service"] {
            faults::of_a_killed(part, &system()).await;
        }
    });
}

#[test]
#[ignore = "needs a system that is up: just e2e"]
fn replicas_share_the_work() {
    let _alone = alone();
    runtime::block_on(2, replicas::of_all_replicas(&system()));
}
