use std::{
    env, fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::Process;

/// What the guard does when our end of its pipe closes: kill what is noted, then remove the directory.
const GUARD: &str = r#"read _; for file in "$1"/pids/*; do kill -9 "$(basename "$file")" 2>/dev/null; done
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

    /// Has this process killed at the end.
    ///
    /// # Errors
    /// If that cannot be noted.
    pub fn guard(&self, process: &Process) -> io::Result<()> {
        fs::write(self.path.join("pids").join(process.pid().to_string()), "")
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
