//! Writes lines on a thread of its own, so that a slow or stalled reader of the output blocks no other thread.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::metrics::{self, IntCounter};

/// Bytes that a line costs in the queue besides its text.
const LINE_OVERHEAD: usize = 64;
/// For how long the first line waits for others, so that one wake-up of the thread writes them all. Urgent lines, a queue
/// that fills up and the end of the process do not wait.
const LINGER: Duration = Duration::from_millis(100);
/// Bytes in the queue with which the thread does not wait for more.
const ENOUGH: usize = PIPE_CAPACITY;
/// Pause before writing again to a non-blocking output that is full.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Lines that were not written, because the queue was full or the output is gone.
pub(super) static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("log_lines_dropped_total", "Log lines dropped, because stdout does not take them.")
});

/// A queue of lines, bounded by bytes, and the thread that writes them. What does not fit is dropped and counted, and a
/// line reports the number when lines are written again.
#[derive(Clone)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    limit: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the thread when lines were added.
    not_empty: Condvar,
    /// Wakes `flush` when the thread has written lines.
    drained: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    /// Bytes of the lines in the queue and of those that the thread is writing.
    bytes: usize,
    /// Dropped lines that no notice has reported yet.
    dropped: u64,
    /// Whether the lines are to be written now.
    is_urgent: bool,
}

impl State {
    fn may_linger(&self) -> bool {
        !self.is_urgent && self.dropped == 0 && self.bytes < ENOUGH
    }
}

impl Writer {
    /// Starts a thread that writes to `output`. `notice` makes the line that says how many lines were dropped.
    pub(super) fn start(
        limit: usize,
        output: impl Write + Send + 'static,
        notice: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let writing = shared.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writing.write(output, notice))?;
        Ok(Self { shared, limit })
    }

    /// Adds a line to the queue, to be written with others soon, or now if it is urgent. Never blocks on the output.
    pub(super) fn add(&self, line: String, is_urgent: bool) {
        let mut state = self.shared.lock();
        let bytes = line.len() + LINE_OVERHEAD;
        if state.bytes + bytes > self.limit {
            state.dropped += 1;
            DROPPED.inc();
            return;
        }
        state.bytes += bytes;
        state.lines.push_back(line);
        state.is_urgent |= is_urgent;
        // The thread waits for a first line, and then for as long as there may be others.
        let is_awaited = state.lines.len() == 1 || !state.may_linger();
        drop(state);
        if is_awaited {
            self.shared.not_empty.notify_one();
        }
    }

    /// Waits until all lines are written, at most for `limit`; false if some are not.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.shared.lock();
        state.is_urgent = true;
        self.shared.not_empty.notify_one();
        while state.bytes > 0 || state.dropped > 0 {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            let waited = self.shared.drained.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Shared {
    fn write(&self, mut output: impl Write, notice: impl Fn(u64) -> String) {
        let mut text = String::new();
        loop {
            let mut state = self.lock();
            while state.lines.is_empty() && state.dropped == 0 {
                state = self.not_empty.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let waited = self.not_empty.wait_timeout_while(state, LINGER, |state| state.may_linger());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.is_urgent = false;
            let lines = state.lines.drain(..);
            let count = lines.len() as u64;
            text.clear();
            text.extend(lines);
            let bytes = text.len() + count as usize * LINE_OVERHEAD;
            // The notice goes before lines that are added while this is being written.
            let dropped = std::mem::take(&mut state.dropped);
            drop(state);
            if dropped > 0 {
                text.push_str(&notice(dropped));
            }
            if write_all(&mut output, text.as_bytes()).is_err() {
                // The reader of the output is gone or the disk is full; the service goes on without its log.
                DROPPED.inc_by(count);
            }
            text.shrink_to(PIPE_CAPACITY);
            self.lock().bytes -= bytes;
            self.drained.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held has lost one line at most.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of the buffer that are kept for the next lines: the capacity of a pipe.
const PIPE_CAPACITY: usize = 64 * 1024;

/// As [`Write::write_all`], but also for a non-blocking output: a pipe or terminal may be shared with a program that
/// has made it so.
fn write_all(output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: usize = 10 * (LINE_OVERHEAD + 8);
    /// How long a test waits for a condition.
    const TIMEOUT: Duration = Duration::from_secs(30);

    /// An output in which each write waits for a permission.
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
    fn a_stalled_output_blocks_nobody_and_gets_the_number_of_dropped_lines() {
        let ((let_one, lets), (began, begins), (written, texts)) = (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let output = Stalling { lets, began, written };
        let writer = Writer::start(LIMIT, output, |count| format!("{count} dropped\n")).unwrap();
        let before = DROPPED.get();
        writer.add("line  0\n".to_owned(), false);
        begins.recv_timeout(TIMEOUT).unwrap();
        for number in 1..100 {
            writer.add(format!("line {number:2}\n"), false);
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
        writer.add("again\n".to_owned(), false);
        let_one.send(()).unwrap();
        assert!(writer.flush(TIMEOUT), "it goes on");
        assert_eq!(texts.recv_timeout(TIMEOUT).unwrap(), b"again\n");
        // The reader is gone.
        drop(let_one);
        writer.add("nobody reads this\n".to_owned(), false);
        assert!(writer.flush(TIMEOUT), "nothing is waited for");
        assert_eq!(DROPPED.get() - before, 91);
    }

    #[test]
    fn lines_that_come_together_are_written_together_and_an_urgent_one_at_once() {
        struct Texts(mpsc::Sender<(String, Instant)>);
        impl Write for Texts {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let text = String::from_utf8(bytes.to_vec()).map_err(io::Error::other)?;
                self.0.send((text, Instant::now())).map_err(io::Error::other)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (texts, written) = mpsc::channel();
        let writer = Writer::start(LIMIT, Texts(texts), |_| String::new()).unwrap();
        let began = Instant::now();
        writer.add("a\n".to_owned(), false);
        writer.add("b\n".to_owned(), false);
        let (text, at) = written.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(text, "a\nb\n");
        assert!(at - began >= LINGER, "{:?}", at - began);
        // Of many tries, so that a busy machine does not make it late each time.
        let is_at_once = (0..100).any(|_| {
            let began = Instant::now();
            writer.add("c\n".to_owned(), false);
            writer.add("d\n".to_owned(), true);
            let mut all = String::new();
            let mut last = began;
            while !all.ends_with("d\n") {
                let (text, at) = written.recv_timeout(TIMEOUT).unwrap();
                all.push_str(&text);
                last = at;
            }
            last - began < LINGER
        });
        assert!(is_at_once);
        writer.add("e\n".to_owned(), false);
        assert!(writer.flush(TIMEOUT), "the end of the process waits for it");
    }

    #[test]
    fn lines_are_written_whole_to_a_non_blocking_output() {
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
