//! One command at a time changes the system: of two `up`s at once, one could overwrite the pid file of the other's server, which
//! `down` would not find any more.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process,
};

use anyhow::{Result, anyhow};

use crate::home;

/// The lock of the checkout, until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct SystemLock {
    _file: File,
}

impl SystemLock {
    /// Takes it for a command.
    ///
    /// # Errors
    /// If another command holds it; the error says which.
    pub(crate) fn take(command: &str) -> Result<Self> {
        Self::take_in(&home::of_checkout()?, command)
    }

    fn take_in(directory: &Path, command: &str) -> Result<Self> {
        let path = directory.join(home::LOCK_FILE);
        loop {
            let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                // Some network file systems have no locks.
                Ok(()) | Err(TryLockError::Error(_)) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    file.read_to_string(&mut holder)?;
                    let holder = if holder.is_empty() { "Another command" } else { holder.trim() };
                    return Err(anyhow!("{holder} is at work on this system. Wait until it has ended, or end it."));
                }
            }
            // Otherwise `reset` has deleted it since it was opened.
            if fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino())) {
                file.set_len(0)?;
                file.write_all(format!("{command} (process {})\n", process::id()).as_bytes())?;
                return Ok(Self { _file: file });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use testbed::Scratch;

    use super::*;

    #[test]
    fn the_second_command_is_told_which_one_is_at_work() {
        let scratch = Scratch::new().unwrap();
        let take = |command: &str| SystemLock::take_in(scratch.path(), command);
        let first = take("just rebuild-analytics").unwrap();
        let error = take("just up").unwrap_err().to_string();
        let holder = format!("just rebuild-analytics (process {}) is at work", process::id());
        assert!(error.starts_with(&holder), "{error}");
        drop(first);
        let second = take("just up").unwrap();
        assert!(
            take("just down").unwrap_err().to_string().starts_with("just up (process"),
            "nothing of the first is left"
        );
        // As `reset` does.
        fs::remove_file(scratch.path().join(home::LOCK_FILE)).unwrap();
        drop(second);
        assert!(take("just up").is_ok());
    }
}
