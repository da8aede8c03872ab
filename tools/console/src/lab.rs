//! Fault injection: the work for the stack's agent, and what is measured meanwhile.
//!
//! The console touches no process and no container. It leaves work for an agent on the host, which asks for it with a token,
//! acts on closed verbs for a bounded time, and heals by a timer of its own though the console be gone.

mod messages;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use event_listener::Event;
use runtime::timeout;
use serde::Serialize;

use crate::{
    expectations::{self, Measured, Verdict},
    map::SERVICES,
    time::iso,
};

pub(crate) use messages::{AgentPoll, Verb};
use messages::{Excluded, Letter, Progress, Report, Target, Work};

/// A fault lasts so long at most.
pub(crate) const MAX_SECONDS: u64 = 60;
/// An agent that has not polled for this long is gone.
const AGENT_GONE_AFTER: Duration = Duration::from_secs(10);
/// Time for the agent to send a dead letter and to see what becomes of it.
const RESEND_TIMEOUT: Duration = Duration::from_secs(40);
/// For how long a list of dead letters is reused.
const LIST_FRESH: Duration = Duration::from_secs(2);
/// How long a page waits for a list; then it gets the one before, unless that is too old.
const LIST_WAIT: Duration = Duration::from_secs(5);
const LIST_KEPT: Duration = Duration::from_secs(60);
/// After this long without a report, a list counts as lost: the agent was stopped.
const LIST_LOST_AFTER: Duration = Duration::from_secs(70);
/// Runs that are kept.
const MAX_RUNS: usize = 20;

/// How a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RunState {
    /// The agent has not begun.
    Waiting,
    Running,
    /// The fault is over; the system catches up.
    Healing,
    Ended,
    Failed,
}

/// A fault with what it was expected to do and what it did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Run {
    run: String,
    part: String,
    verb: Verb,
    seconds: u64,
    state: RunState,
    detail: Option<String>,
    started: String,
    /// When the agent ends the fault by itself; none before it has begun.
    ends: Option<String>,
    ended: Option<String>,
    verdicts: Vec<Verdict>,
}

/// The lab as the page shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LabBody {
    agent: bool,
    parts: Vec<Target>,
    excluded: Vec<Excluded>,
    max_seconds: u64,
    expectations: Vec<expectations::Row>,
    /// What to type where there is no agent, by part and verb.
    commands: BTreeMap<String, String>,
    runs: Vec<Run>,
    /// The newest one.
    run: Option<Run>,
}

/// Why a command is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LabError {
    NoAgent,
    Busy,
    /// No such part, or not with this verb.
    NotOffered,
    NoSuchRun,
}

/// The lab. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lab {
    inner: Arc<Mutex<Inner>>,
    /// Notified when there is work, or a report.
    changed: Arc<Event>,
}

#[derive(Debug, Default)]
struct Inner {
    last_poll: Option<Instant>,
    parts: Vec<Target>,
    excluded: Vec<Excluded>,
    /// What the agent has not taken yet, in order.
    work: VecDeque<Work>,
    runs: VecDeque<Run>,
    /// The dead letter that is being resent, with the agent's report.
    resend: Option<(String, Option<Report>)>,
    /// The list that the agent has been given to make, and since when.
    listing: Option<(String, Instant)>,
    /// The last list, or why there is none.
    listed: Option<(Instant, Result<Vec<Letter>, String>)>,
    count: u64,
}

impl Inner {
    fn has_agent(&self) -> bool {
        self.last_poll.is_some_and(|last_poll| last_poll.elapsed() < AGENT_GONE_AFTER)
    }

    fn run(&mut self, run: &str) -> Option<&mut Run> {
        self.runs.iter_mut().find(|one| one.run == run)
    }

    /// Leaves work for the agent; gives its name.
    fn add_work(&mut self, prefix: &str, part: &str, verb: Verb, seconds: u64) -> String {
        self.count += 1;
        let run = format!("{prefix}{}", self.count);
        self.work.push_back(Work { run: run.clone(), part: part.to_owned(), verb, seconds });
        run
    }

    /// Takes a report of the agent's.
    fn note(&mut self, report: Report) {
        if let Some((_, reported)) = self.resend.as_mut().filter(|(run, _)| *run == report.run) {
            *reported = Some(report);
            return;
        }
        if self.listing.take_if(|(run, _)| *run == report.run).is_some() {
            let listed = match report.state {
                Progress::Failed => Err(report.detail.unwrap_or_default()),
                _ => Ok(report.letters),
            };
            self.listed = Some((Instant::now(), listed));
            return;
        }
        let Some(run) = self.run(&report.run) else { return };
        run.state = match (run.state, report.state) {
            (RunState::Waiting, Progress::Injected) => RunState::Running,
            (RunState::Waiting | RunState::Running, Progress::Healed) => RunState::Healing,
            (RunState::Waiting | RunState::Running, Progress::Failed) => RunState::Failed,
            // It came a second time.
            _ => return,
        };
        run.detail = report.detail;
        if run.state == RunState::Running {
            run.ends = Some(iso(SystemTime::now() + Duration::from_secs(run.seconds)));
        }
        if run.state == RunState::Failed {
            run.ended = Some(iso(SystemTime::now()));
        }
    }
}

impl Lab {
    /// Takes an agent's poll; gives the work that there is.
    pub(crate) fn poll(&self, poll: AgentPoll) -> Option<Work> {
        let mut inner = self.lock();
        inner.last_poll = Some(Instant::now());
        (inner.parts, inner.excluded) = (poll.parts, poll.excluded);
        for report in poll.reports {
            inner.note(report);
        }
        let work = inner.work.pop_front();
        drop(inner);
        self.changed.notify(usize::MAX);
        work
    }

    /// Waits until there is work.
    pub(crate) async fn wait_for_work(&self) {
        let change = self.changed.listen();
        if !self.lock().work.is_empty() {
            return;
        }
        change.await;
    }

    /// Whether an agent polls for work.
    pub(crate) fn has_agent(&self) -> bool {
        self.lock().has_agent()
    }

    /// Begins a run; gives its name.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn begin(&self, part: &str, verb: Verb, seconds: u64) -> Result<String, LabError> {
        let mut inner = self.lock();
        if !inner.has_agent() {
            return Err(LabError::NoAgent);
        }
        let offered = inner.parts.iter().any(|target| target.id == part && target.verbs.contains(&verb));
        if !offered || matches!(verb, Verb::Resume | Verb::Resend | Verb::List) {
            return Err(LabError::NotOffered);
        }
        if inner.runs.front().is_some_and(|run| !matches!(run.state, RunState::Ended | RunState::Failed)) {
            return Err(LabError::Busy);
        }
        let seconds = seconds.clamp(1, MAX_SECONDS);
        let run = inner.add_work("r", part, verb, seconds);
        let verdicts = expectations::judge(part, verb.name(), &Measured::default());
        inner.runs.push_front(Run {
            run: run.clone(),
            part: part.to_owned(),
            verb,
            seconds,
            state: RunState::Waiting,
            detail: None,
            started: iso(SystemTime::now()),
            ends: None,
            ended: None,
            verdicts,
        });
        inner.runs.truncate(MAX_RUNS);
        drop(inner);
        self.changed.notify(usize::MAX);
        Ok(run)
    }

    /// Has the agent send a dead letter again, `partition:offset` or an id of patient-service, and waits for its report: what
    /// went wrong, if something did.
    ///
    /// # Errors
    /// Why it is not asked, or that it has not reported in time.
    pub(crate) async fn resend(&self, letter: &str) -> Result<Option<String>, LabError> {
        let errand = {
            let mut inner = self.lock();
            if !inner.has_agent() {
                return Err(LabError::NoAgent);
            }
            if inner.resend.is_some() {
                return Err(LabError::Busy);
            }
            let errand = inner.add_work("e", letter, Verb::Resend, MAX_SECONDS);
            inner.resend = Some((errand.clone(), None));
            errand
        };
        self.changed.notify(usize::MAX);
        let report = self.until(RESEND_TIMEOUT, |inner| inner.resend.as_ref().and_then(|(_, report)| report.clone()));
        let report = report.await;
        let mut inner = self.lock();
        inner.resend = None;
        inner.work.retain(|work| work.run != errand);
        let Report { state, detail, .. } = report.ok_or(LabError::NoAgent)?;
        Ok((state == Progress::Failed).then(|| detail.unwrap_or_else(|| "it was not sent".to_owned())))
    }

    /// The dead letters of patient-service, which the agent lists; an older list if it takes long; none without an agent or a
    /// list. The error says why the agent could not list them.
    pub(crate) async fn letters(&self) -> Option<Result<Vec<Letter>, String>> {
        let now = Instant::now();
        {
            let mut inner = self.lock();
            if !inner.has_agent() {
                return None;
            }
            if let Some((at, listed)) = &inner.listed
                && now - *at < LIST_FRESH
            {
                return Some(listed.clone());
            }
            // One list at a time, for every page; one that is lost does not stand in the way of the next for ever.
            inner.listing.take_if(|(_, since)| now - *since > LIST_LOST_AFTER);
            if inner.listing.is_none() {
                inner.work.retain(|work| work.verb != Verb::List);
                let errand = inner.add_work("l", "patient-service", Verb::List, MAX_SECONDS);
                inner.listing = Some((errand, now));
            }
        }
        self.changed.notify(usize::MAX);
        self.until(LIST_WAIT, |inner| inner.listed.as_ref().is_some_and(|(at, _)| *at > now).then_some(())).await;
        let inner = self.lock();
        inner.listed.as_ref().filter(|(at, _)| at.elapsed() < LIST_KEPT).map(|(_, listed)| listed.clone())
    }

    /// Waits until something is so after a report of the agent's; none if it is not within this time.
    async fn until<T>(&self, limit: Duration, mut so: impl FnMut(&Inner) -> Option<T>) -> Option<T> {
        let wait = async {
            loop {
                let change = self.changed.listen();
                if let Some(found) = so(&self.lock()) {
                    return found;
                }
                change.await;
            }
        };
        timeout(limit, wait).await.ok()
    }

    /// Has the agent end the fault of a run now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn heal(&self, run: &str) -> Result<(), LabError> {
        let mut inner = self.lock();
        let found = inner.run(run).ok_or(LabError::NoSuchRun)?;
        let work = Work { run: found.run.clone(), part: found.part.clone(), verb: Verb::Resume, seconds: 1 };
        if matches!(found.state, RunState::Waiting | RunState::Running) {
            inner.work.push_back(work);
            drop(inner);
            self.changed.notify(usize::MAX);
        }
        Ok(())
    }

    /// How a run is; none if it is not known.
    pub(crate) fn state(&self, run: &str) -> Option<RunState> {
        self.lock().run(run).map(|run| run.state)
    }

    /// Notes what was measured of a run so far.
    pub(crate) fn note(&self, run: &str, measured: &Measured) {
        if let Some(run) = self.lock().run(run) {
            run.verdicts = expectations::judge(&run.part, run.verb.name(), measured);
        }
    }

    /// Ends a run: the system has caught up, or has had its time.
    pub(crate) fn end(&self, run: &str, failed: Option<String>) {
        if let Some(run) = self.lock().run(run)
            && !matches!(run.state, RunState::Ended | RunState::Failed)
        {
            run.state = if failed.is_some() { RunState::Failed } else { RunState::Ended };
            run.detail = failed.or(run.detail.take());
            run.ended = Some(iso(SystemTime::now()));
        }
    }

    /// A run; none if it is not known.
    pub(crate) fn read(&self, run: &str) -> Option<Run> {
        self.lock().run(run).cloned()
    }

    pub(crate) fn body(&self) -> LabBody {
        let inner = self.lock();
        let has_agent = inner.has_agent();
        // Without an agent, there is still something that a person can type.
        let typed = || SERVICES.map(|id| Target { id: id.to_owned(), verbs: vec![Verb::Kill] }).into();
        let command = |service: &str| (format!("{service}.kill"), format!("./justw kill {service}"));
        LabBody {
            agent: has_agent,
            parts: if has_agent { inner.parts.clone() } else { typed() },
            excluded: inner.excluded.clone(),
            max_seconds: MAX_SECONDS,
            expectations: expectations::rows(),
            commands: SERVICES.iter().map(|service| command(service)).collect(),
            run: inner.runs.front().cloned(),
            runs: inner.runs.iter().cloned().collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll() -> AgentPoll {
        let parts = vec![Target { id: "kafka".to_owned(), verbs: vec![Verb::Pause] }];
        AgentPoll { parts, ..AgentPoll::default() }
    }

    fn reported(run: &str, state: Progress) -> AgentPoll {
        let report = Report { run: run.to_owned(), state, detail: None, letters: Vec::new() };
        AgentPoll { reports: vec![report], ..poll() }
    }

    #[test]
    fn work_is_given_once_to_an_agent_that_offers_it() {
        let lab = Lab::default();
        assert_eq!(lab.begin("kafka", Verb::Pause, 10), Err(LabError::NoAgent));
        assert_eq!(lab.poll(poll()), None);
        for (part, verb) in [("kafka", Verb::Kill), ("patient-db", Verb::Pause), ("kafka", Verb::Resume)] {
            assert_eq!(lab.begin(part, verb, 10), Err(LabError::NotOffered));
        }
        let run = lab.begin("kafka", Verb::Pause, 3600).unwrap();
        assert_eq!(lab.begin("kafka", Verb::Pause, 10), Err(LabError::Busy));
        let work = lab.poll(poll()).unwrap();
        assert_eq!((work.run.as_str(), work.seconds), (run.as_str(), MAX_SECONDS), "no fault lasts longer");
        assert_eq!(lab.poll(poll()), None);
        lab.poll(reported(&run, Progress::Injected));
        assert_eq!(lab.state(&run), Some(RunState::Running));
        lab.heal(&run).unwrap();
        assert_eq!(lab.poll(poll()).map(|work| work.verb), Some(Verb::Resume));
        lab.poll(reported(&run, Progress::Healed));
        assert_eq!(lab.state(&run), Some(RunState::Healing));
        lab.end(&run, None);
        assert_eq!(lab.state(&run), Some(RunState::Ended));
        assert_eq!(lab.heal("r9"), Err(LabError::NoSuchRun));
        assert!(lab.begin("kafka", Verb::Pause, 10).is_ok());
    }

    #[test]
    fn reports_that_come_together_or_twice_are_taken_in_their_order() {
        let lab = Lab::default();
        lab.poll(poll());
        let run = lab.begin("kafka", Verb::Pause, 10).unwrap();
        let reports = [Progress::Injected, Progress::Healed].map(|state| reported(&run, state).reports).concat();
        lab.poll(AgentPoll { reports: reports.clone(), ..poll() });
        assert_eq!(lab.state(&run), Some(RunState::Healing));
        lab.poll(AgentPoll { reports, ..poll() });
        assert_eq!(lab.state(&run), Some(RunState::Healing), "the fault does not begin again");
    }

    #[test]
    fn a_run_that_is_ended_before_the_agent_has_begun_is_begun_and_ended() {
        let lab = Lab::default();
        lab.poll(poll());
        let run = lab.begin("kafka", Verb::Pause, 10).unwrap();
        lab.heal(&run).unwrap();
        let verbs: Vec<_> = std::iter::from_fn(|| lab.poll(poll())).map(|work| work.verb).collect();
        assert_eq!(verbs, [Verb::Pause, Verb::Resume]);
    }

    #[test]
    fn dead_letters_are_listed_once_for_all_pages_and_beside_a_run() {
        smol::block_on(async {
            let lab = Lab::default();
            assert_eq!(lab.letters().await, None, "no agent");
            lab.poll(poll());
            lab.begin("kafka", Verb::Pause, 10).unwrap();
            let letter = Letter {
                id: "outbox-7".to_owned(),
                kind: "PATIENT_CREATED".to_owned(),
                bytes: 3,
                since: "2024-02-29T12:00:00Z".to_owned(),
                error: "MessageTooLarge".to_owned(),
            };
            let agent = async {
                let mut listed = Vec::new();
                while listed.is_empty() {
                    lab.wait_for_work().await;
                    listed.extend(lab.poll(poll()).filter(|work| work.verb == Verb::List));
                }
                let report = Report {
                    run: listed[0].run.clone(),
                    state: Progress::Healed,
                    detail: None,
                    letters: vec![letter.clone()],
                };
                assert_eq!(lab.poll(AgentPoll { reports: vec![report], ..poll() }), None, "one list");
            };
            let (one, other) = (lab.letters(), lab.letters());
            let ((one, other), ()) = smol::future::zip(smol::future::zip(one, other), agent).await;
            assert_eq!((one, other), (Some(Ok(vec![letter.clone()])), Some(Ok(vec![letter.clone()]))));
            assert_eq!(lab.letters().await, Some(Ok(vec![letter])), "it is new enough");
            assert_eq!(lab.poll(poll()), None);
        });
    }
}
