//! A short run of chaos on each broker, on a secure system, and with several analytics-services: nothing is lost.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use testbed::broker::Kind;

testbed::on_each_broker!(nothing_is_lost_while_faults_are_injected);

// The schedules of these seeds kill each kind of component, and freeze some for longer than the deadlines, within 45 s.
fn nothing_is_lost_while_faults_are_injected(kind: Kind) {
    let (broker, seed) = if kind == Kind::Kafka { ("kafka", "37") } else { ("nisshi", "185") };
    nothing_is_lost(&["--broker", broker, "--seed", seed]);
}

mod with_identities {
    mod on_kafka {
        #[test]
        fn nothing_is_lost_while_faults_are_injected() {
            crate::nothing_is_lost(&["--secure", "--seed", "37"]);
        }
    }
}

// Nisshi's groups are not safe for several members.
mod with_members {
    mod on_kafka {
        #[test]
        fn nothing_is_lost_while_faults_are_injected() {
            crate::nothing_is_lost(&["--members", "3", "--standbys", "1", "--seed", "37"]);
        }
    }
}

fn nothing_is_lost(arguments: &[&str]) {
    let length = ["--seconds", "60", "--clients", "8"];
    let output = testbed::command(env!("CARGO_BIN_EXE_chaos")).unwrap().args(length).args(arguments).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    // The test runner shows it if the test fails, and with --nocapture.
    println!("{stdout}");
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.lines().any(|line| line.starts_with("VERDICT: nothing lost")), "{stdout}");
}
