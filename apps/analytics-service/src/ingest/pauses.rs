use std::time::Duration;

use runtime::Backoff;

use super::BACKOFF;

/// Pauses after failures of the state. They double until the state has worked for as long as the longest of them: that a batch
/// was applied shows nothing, because the transactions of another partition may fail each time.
#[derive(Debug)]
pub(super) struct Pauses {
    backoff: Backoff,
    max: Duration,
}

impl Pauses {
    /// Pauses of up to `max`.
    pub(super) fn up_to(max: Duration) -> Self {
        Self { backoff: Backoff::new(BACKOFF.0, max), max }
    }

    /// Notes that the state worked for so long.
    pub(super) fn note_work(&mut self, lasted: Duration) {
        if lasted >= self.max {
            self.backoff.reset();
        }
    }

    /// Sleeps for the next pause.
    pub(super) async fn pause(&mut self) {
        self.backoff.pause().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member that joins again at once each time would keep the partition that it cannot count.
    #[test]
    fn a_state_that_fails_again_and_again_is_left_alone_for_longer_although_batches_were_applied() {
        let max = Duration::from_secs(60);
        let mut pauses = Pauses::up_to(max);
        for _ in 0..10 {
            pauses.note_work(Duration::from_secs(2));
            pauses.backoff.next_pause();
        }
        assert!(pauses.backoff.next_pause() >= max / 2);
        pauses.note_work(max);
        assert!(pauses.backoff.next_pause() <= BACKOFF.0);
    }
}
