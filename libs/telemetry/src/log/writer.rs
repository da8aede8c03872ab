//! Writes lines on a thread of its own, so that whoever reads them slowly, or not at all, holds nobody up.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::metrics::{self, IntCounter};

/// What a line costs in the queue beside its bytes.
const COST: usize = 64;
/// Pause while an output that does not wait by itself has no room.
const PAUSE: Duration = Duration::from_millis(10);

/// Lines that were not written, because the queue was full or the output is gone.
pub(super) static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("log_lines_dropped_total", "Log lines dropped, because stdout does not take them.")
});

/// A queue of lines, bounded by bytes, and the thread that writes them. What does not fit is dropped and counted, and a line
/// of its own says so when lines are written again.
#[derive(Clone)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    limit: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Tells the thread that there are lines.
    more: Condvar,
    /// Tells those that wait for the end that the thread has written what there was.
    written: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    /// Of the lines in the queue and of those that the thread is about to write.
    bytes: usize,
    /// Lines dropped that no line has told of.
    dropped: u64,
}

impl Writer {
    /// Starts a thread that writes to `output`. `told` makes the line that says how many lines were dropped.
    pub(super) fn start(
        limit: usize,
        output: impl Write + Send + 'static,
        told: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let writing = shared.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writing.write(output, told))?;
        Ok(Self { shared, limit })
    }

    /// Queues a line. It never waits for the output.
    pub(super) fn add(&self, line: String) {
        let mut state = self.shared.lock();
        let bytes = line.len() + COST;
        if state.bytes + bytes > self.limit {
            state.dropped += 1;
            DROPPED.inc();
            return;
        }
        state.bytes += bytes;
        state.lines.push_back(line);
        drop(state);
        self.shared.more.notify_one();
    }

    /// Waits until all lines are written, at most for so long; false if some are not.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.shared.lock();
        while state.bytes > 0 || state.dropped > 0 {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            let waited = self.shared.written.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Shared {
    fn write(&self, mut output: impl Write, told: impl Fn(u64) -> String) {
        let mut text = String::new();
        loop {
            let mut state = self.lock();
            while state.lines.is_empty() && state.dropped == 0 {
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let lines = state.lines.drain(..);
            let count = lines.len() as u64;
            text.clear();
            text.extend(lines);
            let bytes = text.len() + count as usize * COST;
            // Lines that come while this is written belong behind what tells of those that were dropped before.
            let dropped = std::mem::take(&mut state.dropped);
            drop(state);
            if dropped > 0 {
                text.push_str(&told(dropped));
            }
            if write_all(&mut output, text.as_bytes()).is_err() {
                // Whoever read our output may be gone, or its disk may be full; the service goes on without its log.
                DROPPED.inc_by(count);
            }
            text.shrink_to(PIPE);
            self.lock().bytes -= bytes;
            self.written.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it is held would have lost a line, and no more.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that are kept for the next lines: what a pipe takes at once.
const PIPE: usize = 64 * 1024;

/// As [`Write::write_all`], but waits for room in an output that somebody has made non-blocking: a pipe or terminal may be
/// shared with such a program.
fn write_all(output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: usize = 10 * (COST + 8);
    /// How long a test waits for what is going to happen.
    const TIMEOUT: Duration = Duration::from_secs(30);

    /// An output that takes something only when it is let.
    struct Stalling {
        lets: mpsc::Receiver<()>,
        began: mpsc::Sender<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Stalling {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.began.send(()).unwrap();
            self.lets.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.written.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_output_that_stalls_holds_nobody_up_and_is_told_what_it_has_missed() {
        let ((let_one, lets), (began, begins), (written, texts)) = (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let output = Stalling { lets, began, written };
        let writer = Writer::start(LIMIT, output, |count| format!("{count} dropped\n")).unwrap();
        let before = DROPPED.get();
        writer.add("line  0\n".to_owned());
        begins.recv_timeout(TIMEOUT).unwrap();
        for number in 1..100 {
            writer.add(format!("line {number:2}\n"));
        }
        assert_eq!(DROPPED.get() - before, 90, "ten fit, one of which is being written");
        assert!(!writer.flush(Duration::from_millis(10)), "it cannot be written");
        for _ in 0..2 {
            let_one.send(()).unwrap();
        }
        assert!(writer.flush(TIMEOUT));
        let text: Vec<u8> = texts.try_iter().flatten().collect();
        let expected: String = (0..10).map(|number| format!("line {number:2}\n")).collect();
        assert_eq!(String::from_utf8(text).unwrap(), expected + "90 dropped\n");
        writer.add("again\n".to_owned());
        let_one.send(()).unwrap();
        assert!(writer.flush(TIMEOUT), "it goes on");
        assert_eq!(texts.recv_timeout(TIMEOUT).unwrap(), b"again\n");
        // Its reader is gone.
        drop(let_one);
        writer.add("nobody reads this\n".to_owned());
        assert!(writer.flush(TIMEOUT), "nothing is waited for");
        assert_eq!(DROPPED.get() - before, 91);
    }

    #[test]
    fn an_output_that_does_not_wait_by_itself_is_written_whole() {
        let mut refusals = 3;
        let mut written = Vec::new();
        struct NonBlocking<'a>(&'a mut u32, &'a mut Vec<u8>);
        impl Write for NonBlocking<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if *self.0 > 0 {
                    *self.0 -= 1;
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let count = bytes.len().min(2);
                self.1.extend(&bytes[..count]);
                Ok(count)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        write_all(&mut NonBlocking(&mut refusals, &mut written), b"a line\n").unwrap();
        assert_eq!((refusals, written.as_slice()), (0, &b"a line\n"[..]));
    }
}
