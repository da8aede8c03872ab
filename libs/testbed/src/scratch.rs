use std::{
    env, fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::Process;

/// What the guard does when our end of its pipe closes: kill what is noted, then remove the directory. The number of a
/// process that has ended may be another's by then: only together with the time of its start it names the one noted.
const GUARD: &str = r#"read _; for file in "$1"/pids/*; do pid=$(basename "$file")
started=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -d ' ' -f 20)
[ -n "$started" ] && [ "$started" = "$(cat "$file")" ] && kill -9 "$pid" 2>/dev/null; done
for n in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1" 2>/dev/null && break; sleep 0.2; done"#;

/// A new directory below the system's temporary one. When this value is dropped, or when our process ends in whatever
/// way, the processes handed to it are killed and the directory is removed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    guard: Child,
}

impl Scratch {
    /// Makes the directory and starts its guard, a shell that waits for the end of a pipe which we hold open.
    ///
    /// # Errors
    /// If either cannot be done.
    pub fn new() -> io::Result<Self> {
        let path = env::temp_dir().join(format!("patient-management-{:016x}", fastrand::u64(..)));
        fs::DirBuilder::new().mode(0o755).create(&path)?;
        // Whatever our umask is, an unprivileged PostgreSQL has to find its way into its own directory in here.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(path.join("pids"))?;
        let mut command = Command::new("sh");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let guard =
            command.args(["-c", GUARD, "guard"]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        Ok(Self { path, guard })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has this process killed at the end, if it has not ended before.
    ///
    /// # Errors
    /// If that cannot be noted.
    pub fn guard(&self, process: &Process) -> io::Result<()> {
        self.note(process.pid(), &process.started().unwrap_or_default())
    }

    /// As [`guard`](Self::guard), for who cannot hold the process meanwhile.
    pub(crate) fn note(&self, pid: i32, started: &str) -> io::Result<()> {
        fs::write(self.path.join("pids").join(pid.to_string()), started)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The line wakes the guard, whose end we wait for, so that a test leaves nothing behind.
        if let Some(mut pipe) = self.guard.stdin.take() {
            let _ = pipe.write_all(b"\n");
        }
        let _ = self.guard.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_end_kills_what_is_guarded_and_nobody_who_got_its_number() {
        let logs = Scratch::new().unwrap();
        let sleep = |name| Process::prepare(name, "sleep", logs.path().join("log")).args(["60"]).start().unwrap();
        let (mut guarded, mut stranger) = (sleep("guarded"), sleep("stranger"));
        let scratch = Scratch::new().unwrap();
        scratch.guard(&guarded).unwrap();
        // As if an earlier process with this number had been guarded.
        fs::write(scratch.path().join("pids").join(stranger.pid().to_string()), "1").unwrap();
        drop(scratch);
        smol::block_on(async {
            assert!(guarded.wait(Duration::from_secs(10)).await.is_some());
            assert_eq!(stranger.ended(), None);
            stranger.kill().await;
        });
    }
}
