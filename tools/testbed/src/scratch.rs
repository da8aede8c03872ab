use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::{Process, guard::Guard};

/// A new directory below the system's temporary one. When this value is dropped, or when our process ends in whatever
/// way, the processes that work in it and those handed to it are killed, with all that descend from them and frozen ones
/// too, and the directory is removed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    guard: Guard,
}

impl Scratch {
    /// Makes the directory and starts its guard.
    ///
    /// # Errors
    /// If either cannot be done.
    pub fn new() -> io::Result<Self> {
        // Absolute, as the kernel tells the working directory of a process.
        let parent = env::temp_dir().canonicalize()?;
        let path = parent.join(format!("patient-management-{:016x}", fastrand::u64(..)));
        fs::DirBuilder::new().mode(0o755).create(&path)?;
        // Whatever our umask is, an unprivileged PostgreSQL has to find its way into its own directory in here.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(path.join("pids"))?;
        let guard = Guard::of_directory(&path)?;
        Ok(Self { path, guard })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has this process killed at the end too, wherever it works.
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
        // We wait for its end, so that a test leaves nothing behind.
        self.guard.act();
    }
}
