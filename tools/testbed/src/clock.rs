//! A wall clock that is wrong by a given offset, which can be changed while a process runs.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::Error;

/// A library for `LD_PRELOAD`: adds the seconds in a file to the wall clock of a process and its children. The monotonic
/// clock, by which deadlines are measured, is unchanged.
const SOURCE: &str = r#"
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
        if (mapped != MAP_FAILED) offset = mapped;
        close(file);
    }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return (time_t)-1;
    if (seconds) *seconds = exact.tv_sec;
    return exact.tv_sec;
}
"#;

/// The wall clock of processes that are started with its [`environment`](Self::environment).
#[derive(Clone, Debug)]
pub struct SteppedClock {
    library: PathBuf,
    offset: PathBuf,
}

impl SteppedClock {
    /// A clock with the offset 0 and its files in `directory`.
    ///
    /// # Errors
    /// If there is no C compiler (`cc`), which Rust needs too, or a file cannot be written.
    pub fn new(directory: &Path) -> Result<Self, Error> {
        let name = format!("clock-{:08x}", fastrand::u32(..));
        let path = |suffix: &str| directory.join(format!("{name}.{suffix}"));
        let (source, library, offset) = (path("c"), path("so"), path("offset"));
        fs::write(&source, SOURCE)?;
        fs::write(&offset, 0_i64.to_ne_bytes())?;
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).stdin(Stdio::null());
        let output = command.output().map_err(|error| Error::new(format!("no C compiler (cc): {error}")))?;
        if !output.status.success() {
            return Err(Error::new(format!("cc: {}", String::from_utf8_lossy(&output.stderr))));
        }
        Ok(Self { library, offset })
    }

    /// Sets the offset of the clock in seconds; negative is in the past. It applies at once, to every process with this clock.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set(&self, seconds: i64) -> io::Result<()> {
        // In place, because the processes have mapped the file.
        File::options().write(true).open(&self.offset)?.write_all_at(&seconds.to_ne_bytes(), 0)
    }

    /// The environment variables with which a process has this clock.
    pub fn environment(&self) -> [(String, String); 2] {
        [
            ("LD_PRELOAD".to_owned(), self.library.display().to_string()),
            ("CLOCK_OFFSET_FILE".to_owned(), self.offset.display().to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn the_offset_applies_to_a_process() {
        let scratch = Scratch::new().unwrap();
        let clock = SteppedClock::new(scratch.path()).unwrap();
        let now = || {
            let output = Command::new("date").arg("+%s").envs(clock.environment()).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().unwrap()
        };
        let right = now();
        for offset in [3_600, -86_400, 0] {
            clock.set(offset).unwrap();
            assert!((offset..offset + 30).contains(&(now() - right)), "{offset}");
        }
    }
}
