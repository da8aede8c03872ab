//! What is expected of the system under each fault, by the rows of docs/failures.md, against what was measured.

use std::time::Duration;

use serde::Serialize;

/// Time for the system to catch up after a fault.
pub(crate) const CATCH_UP_LIMIT: Duration = Duration::from_secs(30);
/// Time for a response, also a 503: the deadlines of the services, and a margin for a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);

/// What was measured of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Measured {
    /// Registrations while the fault was in force: those answered 201, those answered 503 and those that got no answer.
    pub(crate) registered: u64,
    pub(crate) unavailable: u64,
    pub(crate) unanswered: u64,
    pub(crate) other: u64,
    /// The longest time that an answer took.
    pub(crate) slowest: Duration,
    /// Accounts that were not opened with the registration.
    pub(crate) pending: u64,
    /// The most that waited at one time.
    pub(crate) most_in_outbox: u64,
    pub(crate) most_lag: u64,
    /// Whether the fault is over.
    pub(crate) healed: bool,
    /// From the end of the fault until nothing waited any more and registrations were answered.
    pub(crate) caught_up: Option<Duration>,
    /// Whether the time for that is over.
    pub(crate) gave_up: bool,
}

impl Measured {
    fn attempts(&self) -> u64 {
        self.registered + self.unavailable + self.unanswered + self.other
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Pending,
    Ok,
    Failed,
}

/// An expectation with its result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    id: &'static str,
    expected: &'static str,
    measured: String,
    pub(crate) state: Outcome,
}

/// The expectations of a part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    id: String,
    part: &'static str,
    verb: &'static str,
    text: Vec<&'static str>,
    row: &'static str,
}

/// An expectation: its id, its text, and how it is evaluated.
type Expectation = (&'static str, &'static str, fn(&Measured) -> (String, Outcome));

const ANSWERED: Expectation = ("answers", "registrations answer 201", |measured| {
    let Measured { registered, slowest, .. } = measured;
    let attempts = measured.attempts();
    let text = format!("{registered} of {attempts}, the slowest in {:.0} ms", slowest.as_secs_f64() * 1e3);
    (text, judge_all(measured, *registered == attempts))
});
const REFUSED: Expectation = ("answers", "registrations answer 201 or 503, each in time", |measured| {
    let Measured { registered, unavailable, slowest, .. } = measured;
    let in_time = registered + unavailable == measured.attempts() && *slowest <= ANSWER_LIMIT;
    let text = format!("{registered} 201, {unavailable} 503, the slowest in {:.0} ms", slowest.as_secs_f64() * 1e3);
    (text, judge_all(measured, in_time))
});
const UNANSWERED: Expectation = ("answers", "requests fail or wait while it is away", |measured| {
    let failed = measured.unanswered + measured.unavailable;
    (format!("{failed} of {} failed", measured.attempts()), judge_any(measured, failed > 0))
});
const IN_OUTBOX: Expectation = ("outbox", "events wait in the outbox", |measured| {
    (format!("at most {}", measured.most_in_outbox), judge_any(measured, measured.most_in_outbox > 0))
});
const PENDING: Expectation = ("pending", "accounts are PENDING meanwhile", |measured| {
    (format!("{} of {}", measured.pending, measured.registered), judge_any(measured, measured.pending > 0))
});
const IN_TOPIC: Expectation = ("lag", "events wait in the topic", |measured| {
    (format!("at most {}", measured.most_lag), judge_any(measured, measured.most_lag > 0))
});
const CAUGHT_UP: Expectation = ("caught_up", "everything has arrived after its end", |measured| {
    let text = measured.caught_up.map_or("not yet".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()));
    let state = match (measured.caught_up, measured.gave_up) {
        (Some(time), _) if time <= CATCH_UP_LIMIT => Outcome::Ok,
        (Some(_), _) | (None, true) => Outcome::Failed,
        (None, false) => Outcome::Pending,
    };
    (text, state)
});

/// For what must hold for all registrations: decided at the end, or when one breaks it.
fn judge_all(measured: &Measured, holds: bool) -> Outcome {
    match (holds, measured.healed && measured.attempts() > 0) {
        (false, _) if measured.attempts() > 0 => Outcome::Failed,
        (true, true) => Outcome::Ok,
        _ if measured.gave_up => Outcome::Failed,
        _ => Outcome::Pending,
    }
}

/// For what must be observed once: decided when it is, or at the end.
fn judge_any(measured: &Measured, holds: bool) -> Outcome {
    match (holds, measured.caught_up.is_some() || measured.gave_up) {
        (true, _) => Outcome::Ok,
        (false, true) => Outcome::Failed,
        (false, false) => Outcome::Pending,
    }
}

const PARTS: [(&str, &[Expectation], &str); 6] = [
    ("kafka", &[ANSWERED, IN_OUTBOX, CAUGHT_UP], "the broker is unavailable at the start, dies, freezes"),
    ("billing-service", &[ANSWERED, PENDING, CAUGHT_UP], "billing is unavailable, slow"),
    ("analytics-service", &[ANSWERED, IN_TOPIC, CAUGHT_UP], "analytics-service is killed"),
    ("patient-service", &[UNANSWERED, CAUGHT_UP], "patient-service is killed at any instant"),
    ("postgres", &[REFUSED, CAUGHT_UP], "PostgreSQL is killed, frozen, restarted"),
    ("patient-db", &[REFUSED, CAUGHT_UP], "PostgreSQL is killed, frozen, restarted"),
];

const VERBS: [&str; 3] = ["kill", "pause", "slow"];

/// What is expected of a part that is killed, paused or slow. A slow one goes on: nothing has to fail or wait.
fn of_verb(expectations: &[Expectation], verb: &str) -> Vec<Expectation> {
    let expectations = expectations.iter().copied();
    if verb != "slow" {
        return expectations.collect();
    }
    let while_slow = |(id, words, judge): Expectation| match id {
        "answers" if words == UNANSWERED.1 => Some(ANSWERED),
        "answers" | "caught_up" => Some((id, words, judge)),
        _ => None,
    };
    expectations.filter_map(while_slow).collect()
}

/// Every expectation that there is, for the page.
pub(crate) fn rows() -> Vec<Row> {
    let row = |part: &'static str, verb, expectations: &[Expectation], row| Row {
        id: format!("{part}.{verb}"),
        part,
        verb,
        text: of_verb(expectations, verb).iter().map(|(_, words, _)| *words).collect(),
        row,
    };
    let of_part = |(part, expectations, why): &(&'static str, &'static [Expectation], &'static str)| {
        let (part, expectations, why) = (*part, *expectations, *why);
        VERBS.map(|verb| row(part, verb, expectations, why))
    };
    PARTS.iter().flat_map(of_part).collect()
}

/// Evaluates the expectations of a part to which this is done.
pub(crate) fn judge(part: &str, verb: &str, measured: &Measured) -> Vec<Verdict> {
    let found = PARTS.iter().find(|(id, ..)| *id == part);
    let expectations = found.map_or(&[][..], |(_, expectations, _)| expectations);
    let verdict = |(id, expected, judge): Expectation| {
        let (measured, state) = judge(measured);
        Verdict { id, expected, measured, state }
    };
    of_verb(expectations, verb).into_iter().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of each part in which everything is as expected.
    fn good(part: &str) -> Measured {
        let measured = Measured {
            registered: 41,
            slowest: Duration::from_millis(900),
            pending: 7,
            most_in_outbox: 212,
            most_lag: 3,
            healed: true,
            caught_up: Some(Duration::from_secs(2)),
            ..Measured::default()
        };
        if part == "patient-service" { Measured { registered: 1, unanswered: 40, ..measured } } else { measured }
    }

    fn states(part: &str, measured: &Measured) -> Vec<Outcome> {
        judge(part, "pause", measured).iter().map(|verdict| verdict.state).collect()
    }

    #[test]
    fn every_verdict_is_good_when_all_is_as_expected_and_each_can_fail() {
        for (part, expectations, _) in PARTS {
            let measured = good(part);
            assert!(states(part, &measured).iter().all(|state| *state == Outcome::Ok), "{part}");
            // Nothing is as expected.
            let bad = Measured {
                registered: 0,
                other: 41,
                unanswered: if part == "patient-service" { 0 } else { 3 },
                pending: 0,
                most_in_outbox: 0,
                most_lag: 0,
                caught_up: None,
                gave_up: true,
                ..measured
            };
            let failed = states(part, &bad);
            assert_eq!(failed, vec![Outcome::Failed; expectations.len()], "{part}");
            let at_first = states(part, &Measured::default());
            assert!(at_first.iter().all(|state| *state == Outcome::Pending), "{part}: {at_first:?}");
        }
    }

    #[test]
    fn one_answer_that_is_wrong_fails_at_once_and_a_late_one_too() {
        let one_lost = Measured { registered: 40, unanswered: 1, ..Measured::default() };
        assert_eq!(states("kafka", &one_lost)[0], Outcome::Failed);
        let late = Measured { registered: 1, slowest: Duration::from_secs(9), ..Measured::default() };
        assert_eq!(states("postgres", &late)[0], Outcome::Failed);
        let too_late = Measured { caught_up: Some(Duration::from_secs(31)), ..good("kafka") };
        assert_eq!(states("kafka", &too_late)[2], Outcome::Failed);
    }

    #[test]
    fn a_slow_part_need_not_make_anything_fail_or_wait() {
        for (part, ..) in PARTS {
            let measured = Measured {
                registered: 41,
                healed: true,
                caught_up: Some(Duration::from_secs(2)),
                ..Measured::default()
            };
            let verdicts = judge(part, "slow", &measured);
            assert!(verdicts.iter().all(|verdict| verdict.state == Outcome::Ok), "{part}: {verdicts:?}");
            let failed = judge(part, "slow", &Measured { registered: 40, other: 1, ..measured });
            assert_eq!(failed[0].state, Outcome::Failed, "{part}");
        }
    }
}
