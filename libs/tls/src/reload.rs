//! A configuration that follows its files.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use telemetry::Outage;

use crate::{
    Error,
    files::{self, Contents},
    metrics::{EXPIRES, RELOADS},
};

/// Interval between two readings of all files. They are a few kilobytes, and their contents are compared, because a
/// modification time says nothing about a symbolic link that is replaced, as Kubernetes does.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Files, and how to make a configuration of their contents.
pub(crate) trait Source: Send + Sync + 'static {
    type Config: Send + Sync + 'static;

    fn files(&self) -> Vec<&Path>;

    fn build(&self, contents: &Contents) -> Result<Self::Config, Error>;

    /// When the certificate that we show expires, if there is one.
    fn expires(&self, _: &Contents) -> Option<SystemTime> {
        None
    }
}

/// The configuration of the last valid contents of the files of `S`.
pub(crate) struct Reloaded<S: Source> {
    endpoint: &'static str,
    source: S,
    current: Mutex<Arc<S::Config>>,
    /// The contents that were looked at last, valid or not; none if they could not be read.
    seen: Mutex<Option<Contents>>,
    rejected: Outage,
}

impl<S: Source> Reloaded<S> {
    /// Reads the files. From then on they are polled, as long as the result lives.
    ///
    /// # Errors
    /// If they are not valid.
    pub(crate) fn new(endpoint: &'static str, source: S) -> Result<Arc<Self>, Error> {
        let contents = files::read(&source.files())?;
        let current = Mutex::new(Arc::new(source.build(&contents)?));
        record_expiry(endpoint, source.expires(&contents));
        for outcome in ["reloaded", "rejected"] {
            RELOADS.with_label_values(&[endpoint, outcome]);
        }
        let reloaded = Self { endpoint, source, current, seen: Mutex::new(Some(contents)), rejected: Outage::new() };
        let reloaded = Arc::new(reloaded);
        if !reloaded.source.files().is_empty() {
            poll(Arc::downgrade(&reloaded) as Weak<dyn Poll>);
        }
        Ok(reloaded)
    }

    /// The configuration for a new connection.
    pub(crate) fn current(&self) -> Arc<S::Config> {
        lock(&self.current).clone()
    }

    fn take(&self, contents: Result<Contents, Error>) {
        let mut seen = lock(&self.seen);
        let result = match contents {
            Ok(contents) if seen.as_ref() == Some(&contents) => return,
            Ok(contents) => {
                let built = self.source.build(&contents);
                if built.is_ok() {
                    record_expiry(self.endpoint, self.source.expires(&contents));
                }
                *seen = Some(contents);
                built
            }
            // In the middle of a replacement, or for good: counted once.
            Err(_) if seen.is_none() => return,
            Err(error) => {
                *seen = None;
                Err(error)
            }
        };
        let endpoint = self.endpoint;
        match result {
            Ok(config) => {
                *lock(&self.current) = Arc::new(config);
                RELOADS.with_label_values(&[endpoint, "reloaded"]).inc();
                self.rejected.recovered();
                tracing::info!(endpoint, "certificate files reloaded");
            }
            Err(error) => {
                RELOADS.with_label_values(&[endpoint, "rejected"]).inc();
                if self.rejected.failed(&error.to_string()) {
                    tracing::warn!(endpoint, %error, "certificate files changed and are not valid; the old ones stay in use");
                }
            }
        }
    }
}

fn record_expiry(endpoint: &str, expires: Option<SystemTime>) {
    if let Some(time) = expires.and_then(|expires| expires.duration_since(UNIX_EPOCH).ok()) {
        EXPIRES.with_label_values(&[endpoint]).set(time.as_secs() as i64);
    }
}

/// What the thread calls.
trait Poll: Send + Sync {
    fn poll(&self);
}

impl<S: Source> Poll for Reloaded<S> {
    fn poll(&self) {
        self.take(files::read(&self.source.files()));
    }
}

/// Adds files to those that one thread of the process polls. Reading blocks, so it is not done by the executor.
fn poll(reloaded: Weak<dyn Poll>) {
    static POLLED: OnceLock<Mutex<Vec<Weak<dyn Poll>>>> = OnceLock::new();
    let polled = POLLED.get_or_init(|| {
        let run = || {
            loop {
                thread::sleep(POLL_INTERVAL);
                let all = POLLED.get().map(|polled| {
                    let mut polled = lock(polled);
                    polled.retain(|one| one.strong_count() > 0);
                    polled.clone()
                });
                all.iter().flatten().filter_map(Weak::upgrade).for_each(|one| one.poll());
            }
        };
        // Without the thread certificates are those of the start, which a restart changes.
        if let Err(error) = thread::Builder::new().name("certificates".to_owned()).spawn(run) {
            tracing::error!(%error, "certificate files are not read again");
        }
        Mutex::default()
    });
    lock(polled).push(reloaded);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every value behind these is replaced as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Valid are files whose contents are text without an exclamation mark.
    struct Text(PathBuf);

    impl Source for Text {
        type Config = String;

        fn files(&self) -> Vec<&Path> {
            vec![&self.0]
        }

        fn build(&self, contents: &Contents) -> Result<String, Error> {
            let text = String::from_utf8_lossy(&contents[0]).into_owned();
            if text.contains('!') { Err(Error::NoCertificate(self.0.clone())) } else { Ok(text) }
        }
    }

    #[test]
    fn invalid_files_leave_the_old_configuration_and_count_once() {
        let scratch = testbed::Scratch::new().unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "one").unwrap();
        let reloaded = Reloaded::new("tests", Text(file.clone())).unwrap();
        let count = |outcome| RELOADS.with_label_values(&["tests", outcome]).get();
        let after = |text: Option<&str>| {
            match text {
                Some(text) => std::fs::write(&file, text).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            reloaded.poll();
            reloaded.poll();
            (reloaded.current().to_string(), count("reloaded"), count("rejected"))
        };
        assert_eq!(after(Some("one")), ("one".to_owned(), 0, 0), "the same contents are no change");
        assert_eq!(after(Some("two")), ("two".to_owned(), 1, 0));
        assert_eq!(after(Some("bad!")), ("two".to_owned(), 1, 1));
        assert_eq!(after(Some("worse!")), ("two".to_owned(), 1, 2));
        assert_eq!(after(None), ("two".to_owned(), 1, 3));
        assert_eq!(after(Some("three")), ("three".to_owned(), 2, 3));
    }

    #[test]
    fn what_nobody_uses_any_more_is_not_polled() {
        let scratch = testbed::Scratch::new().unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "one").unwrap();
        let reloaded = Reloaded::new("tests", Text(file)).unwrap();
        let weak = Arc::downgrade(&reloaded);
        drop(reloaded);
        assert!(weak.upgrade().is_none());
    }
}
