use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::{Process, guard::Guard};

/// A new temporary directory. When this value is dropped, or our process ends (also by SIGKILL), the guard kills every
/// process whose working directory is inside, every process that was registered by [`guard`](Self::guard), and their
/// descendants, stopped ones included; then it removes the directory.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    guard: Guard,
}

impl Scratch {
    /// Makes the directory and starts its guard.
    ///
    /// # Errors
    /// If the directory or the guard cannot be created.
    pub fn new() -> io::Result<Self> {
        // Canonical, as the kernel reports working directories.
        let parent = env::temp_dir().canonicalize()?;
        let path = parent.join(format!("patient-management-{:016x}", fastrand::u64(..)));
        fs::DirBuilder::new().mode(0o755).create(&path)?;
        // Whatever the umask is: PostgreSQL runs as another user and must be able to enter its own directory below.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(path.join("pids"))?;
        let guard = Guard::of_directory(&path)?;
        Ok(Self { path, guard })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Registers a process to be killed with this directory, whatever its working directory is.
    ///
    /// # Errors
    /// If the file with its pid cannot be written.
    pub fn guard(&self, process: &Process) -> io::Result<()> {
        self.register_pid(process.pid(), &process.started().unwrap_or_default())
    }

    /// As [`guard`](Self::guard), for a caller that cannot borrow the process at the same time.
    pub(crate) fn register_pid(&self, pid: i32, started: &str) -> io::Result<()> {
        fs::write(self.path.join("pids").join(pid.to_string()), started)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Waits until everything is gone, so that a test leaves nothing behind.
        self.guard.kill_all();
    }
}
