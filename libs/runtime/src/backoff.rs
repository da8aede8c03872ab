use std::time::Duration;

/// Pauses between attempts: they double from `first` up to `most`, each drawn at random from its upper half, so that
/// clients that failed together do not come back together.
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
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses of `first` up to `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// The pause after one more failure.
    pub fn next_pause(&mut self) -> Duration {
        let pause = Self::after(self.failures, self.first, self.most);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// The pause after `failures` earlier ones, for a caller that keeps the count elsewhere.
    pub fn after(failures: u32, first: Duration, most: Duration) -> Duration {
        let whole = first.saturating_mul(2u32.saturating_pow(failures.min(31))).min(most);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Says that an attempt went well: the next pause is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits for [`next_pause`](Self::next_pause).
    pub async fn pause(&mut self) {
        smol::Timer::after(self.next_pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_most_and_begin_anew() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, most);
        for whole in [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis) {
            let pause = backoff.next_pause();
            assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.next_pause() <= first);
        assert!(Backoff::after(u32::MAX, first, most) <= most);
    }
}
