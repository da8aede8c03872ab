//! The schedule of faults: a function of the seed alone.

use std::{fmt, time::Duration};

use fastrand::Rng;

/// The index of a component.
pub(crate) type ComponentIndex = usize;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and a start after `down`. With `again`, a second SIGKILL that long after the start, during recovery, and a
    /// start at once.
    Kill { down: Duration, again: Option<Duration> },
    /// SIGSTOP, and SIGCONT after this time.
    Freeze(Duration),
    /// SIGTERM, and a start at once.
    Restart,
    /// SIGTERM, and a start after `down`.
    Stop { down: Duration },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { down, again: None } => write!(f, "kill -9, down {:.1} s", down.as_secs_f64()),
            Self::Kill { down, again: Some(again) } => write!(
                f,
                "kill -9, down {:.1} s, and again {:.1} s after its start",
                down.as_secs_f64(),
                again.as_secs_f64()
            ),
            Self::Freeze(time) => write!(f, "frozen for {:.1} s", time.as_secs_f64()),
            Self::Restart => f.write_str("restarted in order"),
            Self::Stop { down } => write!(f, "stopped in order, down {:.1} s", down.as_secs_f64()),
        }
    }
}

impl Fault {
    /// How long it lasts, without the time for starts and stops.
    fn length(self) -> Duration {
        match self {
            Self::Kill { down, again } => down + again.unwrap_or_default(),
            Self::Freeze(time) => time,
            Self::Restart => Duration::ZERO,
            Self::Stop { down } => down,
        }
    }
}

/// A fault of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injection {
    /// The time after the start of its round.
    pub(crate) after: Duration,
    pub(crate) target: ComponentIndex,
    pub(crate) fault: Fault,
}

/// One injection, or two overlapping ones of different components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// The time after the start of the faults, if starts and stops took no time.
    pub(crate) at: Duration,
    pub(crate) injections: Vec<Injection>,
}

impl Round {
    /// The end of its last fault, on the same scale as `at`.
    pub(crate) fn end(&self) -> Duration {
        let ends = self.injections.iter().map(|injection| self.at + injection.after + injection.fault.length());
        ends.max().unwrap_or(self.at)
    }
}

/// Milliseconds between rounds: long enough or too short for the system to recover.
const PAUSE: std::ops::Range<u64> = 500..4_000;
/// Milliseconds for which a component is down, and until the second SIGKILL.
const DOWN: std::ops::Range<u64> = 0..3_000;
const AGAIN: std::ops::Range<u64> = 0..1_500;
/// Milliseconds for which a component is stopped: shorter or longer than every deadline.
const FROZEN: std::ops::Range<u64> = 300..8_000;
/// Milliseconds from the first injection of a round to the second.
const SECOND: std::ops::Range<u64> = 0..1_000;

/// Seconds between the times when deletions from the outbox are undone.
const UNDO_INTERVAL: std::ops::Range<u64> = 8..16;

/// When deletions from the outbox are undone, so that events are published again.
pub(crate) fn delete_undo_times(seed: u64, length: Duration) -> Vec<Duration> {
    every(&mut Rng::with_seed(!seed), UNDO_INTERVAL, length)
}

/// Seconds between steps of PostgreSQL's clock.
const CLOCK_STEP_INTERVAL: std::ops::Range<u64> = 6..14;
/// The maximum offset of the clock in seconds, either way: longer than an idempotency key is kept.
const MAX_CLOCK_OFFSET: i64 = 3 * 24 * 3_600;

/// When PostgreSQL's clock is set, and to which offset in seconds. Each third step sets it back to the correct time.
pub(crate) fn clock_steps(seed: u64, length: Duration) -> Vec<(Duration, i64)> {
    let mut rng = Rng::with_seed(seed.rotate_left(32));
    let times = every(&mut rng, CLOCK_STEP_INTERVAL, length).into_iter().enumerate();
    times.map(|(n, at)| (at, if n % 3 == 2 { 0 } else { rng.i64(-MAX_CLOCK_OFFSET..=MAX_CLOCK_OFFSET) })).collect()
}

/// Seconds between failovers of PostgreSQL.
const FAILOVER_INTERVAL: std::ops::Range<u64> = 12..24;

/// When PostgreSQL fails over to its standby.
pub(crate) fn failover_times(seed: u64, length: Duration) -> Vec<Duration> {
    every(&mut Rng::with_seed(!seed.rotate_left(32)), FAILOVER_INTERVAL, length)
}

/// Seconds between faults of members of the consumer group.
const MEMBER_INTERVAL: std::ops::Range<u64> = 4..12;
/// Milliseconds for which a member is away: shorter than the session timeout, and longer.
const SHORT_AWAY: std::ops::Range<u64> = 0..5_000;
const LONG_AWAY: std::ops::Range<u64> = 7_000..12_000;

/// When a member of the consumer group has a fault, which of them, and which fault. All of them and all faults in turn.
pub(crate) fn member_faults(seed: u64, length: Duration, members: usize) -> Vec<(Duration, usize, Fault)> {
    let mut rng = Rng::with_seed(seed.rotate_left(16));
    let times = every(&mut rng, MEMBER_INTERVAL, length);
    let (mut targets, mut faults) = (Vec::new(), Vec::new());
    let fault = |at| {
        let target = in_turn(&mut rng, &mut targets, members);
        let kill = |down| Fault::Kill { down, again: None };
        let fault = match in_turn(&mut rng, &mut faults, 5) {
            0 => kill(millis(&mut rng, SHORT_AWAY)),
            1 => kill(millis(&mut rng, LONG_AWAY)),
            2 => Fault::Freeze(millis(&mut rng, SHORT_AWAY)),
            3 => Fault::Freeze(millis(&mut rng, LONG_AWAY)),
            _ => Fault::Stop { down: millis(&mut rng, SHORT_AWAY) },
        };
        (at, target, fault)
    };
    times.into_iter().map(fault).collect()
}

/// The next of `0..count` in a random order, all of them in turn.
fn in_turn(rng: &mut Rng, bag: &mut Vec<usize>, count: usize) -> usize {
    if bag.is_empty() {
        bag.extend(0..count);
        rng.shuffle(bag);
    }
    bag.pop().unwrap_or_default()
}

/// Times within `length` at random intervals in this range; the first after half an interval.
fn every(rng: &mut Rng, seconds: std::ops::Range<u64>, length: Duration) -> Vec<Duration> {
    let mut next = || Duration::from_secs(rng.u64(seconds.clone()));
    std::iter::successors(Some(next() / 2), |at| Some(*at + next())).take_while(|at| *at < length).collect()
}

/// The rounds that start within `length`. Components have their faults in turn, except that the two components of one round
/// are always different.
pub(crate) fn schedule(seed: u64, length: Duration, components: usize) -> Vec<Round> {
    let mut rng = Rng::with_seed(seed);
    let mut bag = Vec::new();
    let mut at = millis(&mut rng, PAUSE);
    let mut rounds = Vec::new();
    while at < length {
        let mut injections: Vec<Injection> = Vec::new();
        let count = if rng.u8(..3) == 0 { 2 } else { 1 };
        while injections.len() < count {
            let first_target = injections.first().map(|first| first.target);
            let target = draw(&mut rng, &mut bag, components, first_target);
            let after = if first_target.is_some() { millis(&mut rng, SECOND) } else { Duration::ZERO };
            injections.push(Injection { after, target, fault: fault(&mut rng) });
        }
        let round = Round { at, injections };
        at = round.end() + millis(&mut rng, PAUSE);
        rounds.push(round);
    }
    rounds
}

fn draw(
    rng: &mut Rng,
    bag: &mut Vec<ComponentIndex>,
    components: usize,
    other_than: Option<ComponentIndex>,
) -> ComponentIndex {
    loop {
        if let Some(at) = bag.iter().rposition(|target| Some(*target) != other_than) {
            return bag.remove(at);
        }
        let mut all: Vec<_> = (0..components).collect();
        rng.shuffle(&mut all);
        all.append(bag);
        *bag = all;
    }
}

fn fault(rng: &mut Rng) -> Fault {
    match rng.u8(..10) {
        0..2 => Fault::Restart,
        2..6 => Fault::Freeze(millis(rng, FROZEN)),
        _ => {
            let down = millis(rng, DOWN);
            let again = (rng.u8(..4) == 0).then(|| millis(rng, AGAIN));
            Fault::Kill { down, again }
        }
    }
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    const LENGTH: Duration = Duration::from_secs(300);
    const COMPONENTS: usize = 7;

    #[test]
    fn a_seed_always_makes_the_same_schedule() {
        for seed in 0..50 {
            assert_eq!(schedule(seed, LENGTH, COMPONENTS), schedule(seed, LENGTH, COMPONENTS));
            let shorter = schedule(seed, LENGTH / 2, COMPONENTS);
            assert_eq!(
                shorter,
                schedule(seed, LENGTH, COMPONENTS)[..shorter.len()],
                "a shorter run is the beginning of a longer one"
            );
        }
        let different: HashSet<_> = (0..50).map(|seed| format!("{:?}", schedule(seed, LENGTH, COMPONENTS))).collect();
        assert_eq!(different.len(), 50);
    }

    /// Otherwise the seeds of earlier runs could not be reproduced.
    #[test]
    fn the_schedule_of_a_recorded_seed_has_not_changed() {
        let text: Vec<_> = schedule(1, Duration::from_secs(12), COMPONENTS)
            .iter()
            .flat_map(|round| {
                let at = round.at;
                round.injections.iter().map(move |injection| {
                    format!("{} {}: {}", (at + injection.after).as_millis(), injection.target, injection.fault)
                })
            })
            .collect();
        let recorded = [
            "2799 1: kill -9, down 0.5 s",
            "4355 6: frozen for 1.1 s",
            "7378 5: kill -9, down 1.7 s",
            "11731 4: frozen for 7.5 s",
        ];
        assert_eq!(text, recorded);
    }

    #[test]
    fn deletions_are_undone_at_intervals() {
        for seed in 0..50 {
            let delete_undo_times = delete_undo_times(seed, LENGTH);
            assert!(
                (18..=40).contains(&delete_undo_times.len()) && delete_undo_times.is_sorted(),
                "{delete_undo_times:?}"
            );
            assert!(!super::delete_undo_times(seed, Duration::from_secs(8)).is_empty(), "also in a short run");
        }
    }

    #[test]
    fn the_clock_steps_both_ways_and_back_to_the_correct_time() {
        for seed in 0..50 {
            let steps = clock_steps(seed, LENGTH);
            assert!((20..=50).contains(&steps.len()) && steps.is_sorted_by_key(|(at, _)| *at), "{steps:?}");
            assert!(steps.iter().all(|(at, off)| *at < LENGTH && off.abs() <= MAX_CLOCK_OFFSET), "{steps:?}");
            for sign in [-1, 0, 1] {
                assert!(steps.iter().any(|(_, off)| off.signum() == sign), "{steps:?}");
            }
        }
    }

    #[test]
    fn every_member_has_faults_and_each_fault_comes() {
        for seed in 0..50 {
            let faults = member_faults(seed, LENGTH, 3);
            assert_eq!(faults, member_faults(seed, LENGTH, 3), "a seed always makes the same faults");
            assert!(faults.is_sorted_by_key(|(at, ..)| *at) && faults.iter().all(|(at, ..)| *at < LENGTH));
            let targets: HashSet<_> = faults[..3].iter().map(|(_, target, _)| *target).collect();
            assert_eq!(targets, HashSet::from([0, 1, 2]));
            let is_long = |time: Duration| time > Duration::from_secs(6);
            let kinds: HashSet<_> = faults[..5]
                .iter()
                .map(|(.., fault)| match fault {
                    Fault::Kill { down, .. } => ("kill", is_long(*down)),
                    Fault::Freeze(time) => ("freeze", is_long(*time)),
                    Fault::Stop { .. } | Fault::Restart => ("stop", false),
                })
                .collect();
            assert_eq!(kinds.len(), 5, "{kinds:?}");
        }
    }

    #[test]
    fn one_or_two_components_have_a_fault_at_a_time_and_all_in_turn() {
        for seed in 0..50 {
            let rounds = schedule(seed, LENGTH, COMPONENTS);
            assert!(rounds.iter().all(|round| round.at < LENGTH));
            for pair in rounds.windows(2) {
                assert!(pair[0].end() < pair[1].at, "rounds do not overlap");
            }
            for round in &rounds {
                let targets: HashSet<_> = round.injections.iter().map(|injection| injection.target).collect();
                assert!((1..=2).contains(&targets.len()) && targets.len() == round.injections.len());
            }
            let mut times_of = HashMap::new();
            for injection in rounds.iter().flat_map(|round| &round.injections) {
                *times_of.entry(injection.target).or_insert(0) += 1;
                let fewest = if times_of.len() < COMPONENTS { 0 } else { *times_of.values().min().unwrap() };
                // 2, because a round of two may have drawn one before its turn.
                assert!(times_of.values().all(|times| times - fewest <= 2), "{times_of:?}");
            }
            assert_eq!(times_of.len(), COMPONENTS);
        }
    }

    #[test]
    fn every_fault_is_in_the_schedule() {
        let rounds = schedule(1, LENGTH * 4, COMPONENTS);
        let faults = || rounds.iter().flat_map(|round| &round.injections).map(|injection| injection.fault);
        assert!(faults().any(|fault| fault == Fault::Restart));
        assert!(faults().any(|fault| matches!(fault, Fault::Freeze(time) if time > Duration::from_secs(6))));
        assert!(faults().any(|fault| matches!(fault, Fault::Kill { again: None, .. })));
        assert!(faults().any(|fault| matches!(fault, Fault::Kill { again: Some(_), .. })));
        assert!(rounds.iter().any(|round| round.injections.len() == 2));
    }
}
