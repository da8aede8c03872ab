//! A short run of chaos on each broker: nothing is lost.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use testbed::broker::Kind;

testbed::on_each_broker!(nothing_is_lost_while_faults_are_injected);

fn nothing_is_lost_while_faults_are_injected(kind: Kind) {
    // The schedules of these seeds kill each kind of component, and freeze some for longer than the deadlines, within 45 s.
    let (broker, seed) = if kind == Kind::Kafka { ("kafka", "37") } else { ("nisshi", "185") };
    let arguments = ["--seconds", "60", "--clients", "8", "--broker", broker, "--seed", seed];
    let output = testbed::command(env!("CARGO_BIN_EXE_chaos")).unwrap().args(arguments).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    // The test runner shows it if the test fails, and with --nocapture.
    println!("{stdout}");
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.lines().any(|line| line.starts_with("VERDICT: nothing lost")), "{stdout}");
}
