//! End-to-end tests against the system of `just up`, native or in containers: `just e2e` runs them if there is one.
//!
//! It may have other patients, but no other client may write meanwhile. `stack target` prints its addresses.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod faults;
mod journey;
mod privacy;
mod replicas;
mod running_system;
mod support;
mod traces;

use std::{
    env,
    process::Command,
    sync::{Mutex, MutexGuard},
};

use running_system::RunningSystem;

/// Runs one test at a time, because each counts its own changes.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The current addresses: a container may have another port after a restart.
fn system() -> RunningSystem {
    RunningSystem::of_target(&stack(&["target"]), Box::new(|component| stack(&["logs", "--all", component])))
}

/// Runs `stack` in the checkout of the system.
fn stack(arguments: &[&str]) -> String {
    let program = env::var("E2E_STACK").expect("E2E_STACK is not set: run just e2e");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let output = Command::new(program).args(arguments).current_dir(root).output().unwrap();
    assert!(output.status.success(), "stack {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Starts what is missing of the system, in its mode.
fn up_again() {
    let secure = stack(&["target"]).contains("AUTHORITY=");
    let mode = secure.then_some("--secure");
    stack(&["up", "--no-build"].into_iter().chain(mode).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs a system that is up: just e2e"]
fn a_patient_goes_through_the_whole_system() {
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
fn no_personal_data_are_in_logs_metrics_or_exports() {
    let _alone = alone();
    runtime::block_on(2, privacy::of_a_marked_patient(&system()));
}

#[test]
#[ignore = "needs a system that is up: just e2e"]
fn a_service_that_is_killed_loses_nothing() {
    let _alone = alone();
    runtime::block_on(2, async {
        for component in ["billing-service", "analytics-service", "patient-service"] {
            faults::of_a_killed(component, &system()).await;
        }
    });
}

#[test]
#[ignore = "needs a system that is up: just e2e"]
fn replicas_share_the_work() {
    let _alone = alone();
    runtime::block_on(2, replicas::of_all_replicas(&system()));
}
