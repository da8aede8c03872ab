use std::time::Duration;

/// Exponential backoff with jitter: pauses double from `first` up to `max`, and each is drawn at random from its upper
/// half, so that clients that failed together do not retry together.
///
/// ```
/// use std::time::Duration;
/// let mut backoff = runtime::Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// assert!(backoff.next_pause() <= Duration::from_millis(100));
/// assert!(backoff.next_pause() <= Duration::from_millis(200));
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses of `first` up to `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// The pause after one more failure.
    pub fn next_pause(&mut self) -> Duration {
        let pause = Self::after(self.failures, self.first, self.max);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// The pause after `failures` earlier failures, for a caller that keeps the count itself.
    pub fn after(failures: u32, first: Duration, max: Duration) -> Duration {
        let whole = first.saturating_mul(2u32.saturating_pow(failures.min(31))).min(max);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Resets the count after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Sleeps for [`next_pause`](Self::next_pause).
    pub async fn pause(&mut self) {
        smol::Timer::after(self.next_pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum_and_can_be_reset() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, max);
        for whole in [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis) {
            let pause = backoff.next_pause();
            assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.next_pause() <= first);
        assert!(Backoff::after(u32::MAX, first, max) <= max);
    }
}
