//! Runs a program for its output.

use std::{
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::Error;

/// Time for a program whose output is wanted.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a program without input, which is expected to end soon, and returns its output and exit code. Blocks the thread.
///
/// # Errors
/// If it does not start, or has not ended after a minute; then it is killed, and the error shows its output.
pub fn output(command: &mut Command) -> Result<Output, Error> {
    output_within(OUTPUT_TIMEOUT, command)
}

fn output_within(limit: Duration, command: &mut Command) -> Result<Output, Error> {
    let program = command.get_program().display().to_string();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| Error::new(format!("cannot start {program}: {error}")))?;
    let pid = Pid::from_child(&child);
    let (ended, end) = mpsc::channel::<()>();
    let watcher = thread::spawn(move || {
        let is_late = end.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        // Nobody else reaps it, so the id is still its own, or its output has just ended.
        is_late && kill_process(pid, Signal::KILL).is_ok()
    });
    let output = child.wait_with_output();
    drop(ended);
    let was_killed = watcher.join().unwrap_or_default();
    let output = output?;
    if was_killed {
        return Err(Error::of_output(format!("{program} has not ended after {} s", limit.as_secs_f32()), &output));
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_killed_and_one_that_ends_has_its_output() {
        let shell = |limit: u64, script: &str| {
            let mut command = Command::new("sh");
            output_within(Duration::from_millis(limit), command.args(["-c", script]))
        };
        let ended = shell(60_000, "cat; echo out; echo error >&2; exit 7").unwrap();
        assert_eq!((ended.status.code(), &*ended.stdout, &*ended.stderr), (Some(7), &b"out\n"[..], &b"error\n"[..]));
        let started = Instant::now();
        let late = shell(200, "echo begun; exec sleep 60").unwrap_err().to_string();
        assert!(late.contains("has not ended after 0.2 s") && late.contains("begun"), "{late}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
