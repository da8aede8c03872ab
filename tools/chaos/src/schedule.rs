//! Which fault is injected when: a function of the seed and of nothing else.

use std::{fmt, time::Duration};

use fastrand::Rng;

/// A part of the system, by its number.
pub(crate) type Target = usize;

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9`; it is started again after `down`. With `again` it is killed once more that long after its start, while
    /// it recovers, and started at once.
    Kill { down: Duration, again: Option<Duration> },
    /// SIGSTOP, and after this time SIGCONT.
    Freeze(Duration),
    /// Stopped in order and started at once.
    Restart,
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
        }
    }
}

impl Fault {
    /// How long it lasts, the time of starts and stops left out.
    fn length(self) -> Duration {
        match self {
            Self::Kill { down, again } => down + again.unwrap_or_default(),
            Self::Freeze(time) => time,
            Self::Restart => Duration::ZERO,
        }
    }
}

/// A fault of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injection {
    /// How long after the begin of its round.
    pub(crate) after: Duration,
    pub(crate) target: Target,
    pub(crate) fault: Fault,
}

/// One injection, or two of different parts that overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// How long after the begin of the faults, if no start and no stop took any time.
    pub(crate) at: Duration,
    pub(crate) injections: Vec<Injection>,
}

impl Round {
    /// When its last fault is over, counted as `at` is.
    pub(crate) fn end(&self) -> Duration {
        let ends = self.injections.iter().map(|injection| self.at + injection.after + injection.fault.length());
        ends.max().unwrap_or(self.at)
    }
}

/// Milliseconds between rounds, in which the system may or may not have recovered.
const PAUSE: std::ops::Range<u64> = 500..4_000;
/// Milliseconds for which a part is down, and after which one that recovers is killed again.
const DOWN: std::ops::Range<u64> = 0..3_000;
const AGAIN: std::ops::Range<u64> = 0..1_500;
/// Milliseconds for which a part is frozen: longer than every deadline, or shorter.
const FROZEN: std::ops::Range<u64> = 300..8_000;
/// The second injection of a round comes so many milliseconds after the first.
const SECOND: std::ops::Range<u64> = 0..1_000;

/// Seconds from one time when deletions from the outbox are undone to the next.
const UNDONE_EVERY: std::ops::Range<u64> = 8..16;

/// When deletions from the outbox are undone, so that what was published is published again.
pub(crate) fn undos(seed: u64, length: Duration) -> Vec<Duration> {
    every(&mut Rng::with_seed(!seed), UNDONE_EVERY, length)
}

/// Seconds from one step of PostgreSQL's clock to the next.
const CLOCK_STEPS_EVERY: std::ops::Range<u64> = 6..14;
/// By how many seconds the clock is off at most, ahead or behind: longer than an idempotency key is kept.
const CLOCK_OFFSET: i64 = 3 * 24 * 3_600;

/// When PostgreSQL's clock is set, and to how many seconds after the right time (before it, if negative). Each third
/// step goes back to the right time, so that clocks are set right too.
pub(crate) fn clock_steps(seed: u64, length: Duration) -> Vec<(Duration, i64)> {
    let mut rng = Rng::with_seed(seed.rotate_left(32));
    let times = every(&mut rng, CLOCK_STEPS_EVERY, length).into_iter().enumerate();
    times.map(|(n, at)| (at, if n % 3 == 2 { 0 } else { rng.i64(-CLOCK_OFFSET..=CLOCK_OFFSET) })).collect()
}

/// Seconds from one failover of PostgreSQL to the next.
const FAILOVERS_EVERY: std::ops::Range<u64> = 12..24;

/// When PostgreSQL fails over to its standby.
pub(crate) fn failovers(seed: u64, length: Duration) -> Vec<Duration> {
    every(&mut Rng::with_seed(!seed.rotate_left(32)), FAILOVERS_EVERY, length)
}

/// Times within `length`, each so many seconds after the one before; the first after half of that.
fn every(rng: &mut Rng, seconds: std::ops::Range<u64>, length: Duration) -> Vec<Duration> {
    let mut next = || Duration::from_secs(rng.u64(seconds.clone()));
    std::iter::successors(Some(next() / 2), |at| Some(*at + next())).take_while(|at| *at < length).collect()
}

/// The rounds that begin within `length`. Every part has had a fault before one has a second, and so on, but for
/// a change of order that keeps the two of a round apart.
pub(crate) fn schedule(seed: u64, length: Duration, parts: usize) -> Vec<Round> {
    let mut rng = Rng::with_seed(seed);
    let mut bag = Vec::new();
    let mut at = millis(&mut rng, PAUSE);
    let mut rounds = Vec::new();
    while at < length {
        let mut injections: Vec<Injection> = Vec::new();
        let count = if rng.u8(..3) == 0 { 2 } else { 1 };
        while injections.len() < count {
            let first_target = injections.first().map(|first| first.target);
            let target = draw(&mut rng, &mut bag, parts, first_target);
            let after = if first_target.is_some() { millis(&mut rng, SECOND) } else { Duration::ZERO };
            injections.push(Injection { after, target, fault: fault(&mut rng) });
        }
        let round = Round { at, injections };
        at = round.end() + millis(&mut rng, PAUSE);
        rounds.push(round);
    }
    rounds
}

fn draw(rng: &mut Rng, bag: &mut Vec<Target>, parts: usize, other_than: Option<Target>) -> Target {
    loop {
        if let Some(at) = bag.iter().rposition(|target| Some(*target) != other_than) {
            return bag.remove(at);
        }
        let mut all: Vec<_> = (0..parts).collect();
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
    const PARTS: usize = 7;

    #[test]
    fn the_seed_makes_the_schedule() {
        for seed in 0..50 {
            assert_eq!(schedule(seed, LENGTH, PARTS), schedule(seed, LENGTH, PARTS));
            let shorter = schedule(seed, LENGTH / 2, PARTS);
            assert_eq!(
                shorter,
                schedule(seed, LENGTH, PARTS)[..shorter.len()],
                "a shorter run is the begin of a longer one"
            );
        }
        let different: HashSet<_> = (0..50).map(|seed| format!("{:?}", schedule(seed, LENGTH, PARTS))).collect();
        assert_eq!(different.len(), 50);
    }

    /// A change of the generator would make every noted seed worthless.
    #[test]
    fn a_noted_seed_stays_what_it_was() {
        let text: Vec<_> = schedule(1, Duration::from_secs(12), PARTS)
            .iter()
            .flat_map(|round| {
                let at = round.at;
                round.injections.iter().map(move |injection| {
                    format!("{} {}: {}", (at + injection.after).as_millis(), injection.target, injection.fault)
                })
            })
            .collect();
        let noted = [
            "2799 1: kill -9, down 0.5 s",
            "4355 6: frozen for 1.1 s",
            "7378 5: kill -9, down 1.7 s",
            "11731 4: frozen for 7.5 s",
        ];
        assert_eq!(text, noted);
    }

    #[test]
    fn deletions_are_undone_now_and_then() {
        for seed in 0..50 {
            let undos = undos(seed, LENGTH);
            assert!((18..=40).contains(&undos.len()) && undos.is_sorted(), "{undos:?}");
            assert!(!super::undos(seed, Duration::from_secs(8)).is_empty(), "also in a short run");
        }
    }

    #[test]
    fn the_clock_steps_both_ways_and_back_to_the_right_time() {
        for seed in 0..50 {
            let steps = clock_steps(seed, LENGTH);
            assert!((20..=50).contains(&steps.len()) && steps.is_sorted_by_key(|(at, _)| *at), "{steps:?}");
            assert!(steps.iter().all(|(at, off)| *at < LENGTH && off.abs() <= CLOCK_OFFSET), "{steps:?}");
            for sign in [-1, 0, 1] {
                assert!(steps.iter().any(|(_, off)| off.signum() == sign), "{steps:?}");
            }
        }
    }

    #[test]
    fn one_or_two_parts_have_a_fault_at_a_time_and_all_in_turn() {
        for seed in 0..50 {
            let rounds = schedule(seed, LENGTH, PARTS);
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
                let fewest = if times_of.len() < PARTS { 0 } else { *times_of.values().min().unwrap() };
                // Two: one that a round of two has drawn before its turn.
                assert!(times_of.values().all(|times| times - fewest <= 2), "{times_of:?}");
            }
            assert_eq!(times_of.len(), PARTS);
        }
    }

    #[test]
    fn every_fault_comes() {
        let rounds = schedule(1, LENGTH * 4, PARTS);
        let faults = || rounds.iter().flat_map(|round| &round.injections).map(|injection| injection.fault);
        assert!(faults().any(|fault| fault == Fault::Restart));
        assert!(faults().any(|fault| matches!(fault, Fault::Freeze(time) if time > Duration::from_secs(6))));
        assert!(faults().any(|fault| matches!(fault, Fault::Kill { again: None, .. })));
        assert!(faults().any(|fault| matches!(fault, Fault::Kill { again: Some(_), .. })));
        assert!(rounds.iter().any(|round| round.injections.len() == 2));
    }
}
