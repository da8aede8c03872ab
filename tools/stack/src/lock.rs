//! One command at a time changes the system: of two `up`s at once, one could overwrite the pid file of the other's server, which
//! `down` would not find any more.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process,
    time::Duration,
};

use anyhow::{Result, anyhow};

use crate::home;

/// How often it is tried again.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

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

    /// Takes it as soon as no other command holds it.
    pub(crate) async fn wait(command: &str) -> Result<Self> {
        Self::wait_in(&home::of_checkout()?, command).await
    }

    fn take_in(directory: &Path, command: &str) -> Result<Self> {
        Self::try_take_in(directory, command)?
            .map_err(|holder| anyhow!("{holder} is at work on this system. Wait until it has ended, or end it."))
    }

    async fn wait_in(directory: &Path, command: &str) -> Result<Self> {
        loop {
            if let Ok(lock) = Self::try_take_in(directory, command)? {
                return Ok(lock);
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    /// Takes it, or says who holds it.
    fn try_take_in(directory: &Path, command: &str) -> Result<Result<Self, String>> {
        let path = directory.join(home::LOCK_FILE);
        loop {
            let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                // Some network file systems have no locks.
                Ok(()) | Err(TryLockError::Error(_)) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    file.read_to_string(&mut holder)?;
                    let holder = holder.trim();
                    return Ok(Err(if holder.is_empty() { "Another command" } else { holder }.to_owned()));
                }
            }
            // Otherwise `reset` has deleted it since it was opened.
            if fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino())) {
                file.set_len(0)?;
                file.write_all(format!("{command} (process {})\n", process::id()).as_bytes())?;
                return Ok(Ok(Self { _file: file }));
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

    #[test]
    fn whoever_waits_takes_it_when_the_holder_has_ended() {
        let scratch = Scratch::new().unwrap();
        smol::block_on(async {
            let holder = SystemLock::take_in(scratch.path(), "just up").unwrap();
            let mut waiting = Box::pin(SystemLock::wait_in(scratch.path(), "the lab"));
            assert!(smol::future::poll_once(&mut waiting).await.is_none(), "just up holds it");
            drop(holder);
            let lock = waiting.await.unwrap();
            assert!(SystemLock::take_in(scratch.path(), "just up").is_err());
            drop(lock);
        });
    }
}
