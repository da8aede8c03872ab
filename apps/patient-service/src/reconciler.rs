//! Tells billing what a request could not tell it in time: opens accounts that are `PENDING`, closes those of patients
//! who are gone. It tries until it is done, with growing pauses.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::future::join_all;
use grpc::{CallError, Code};
use runtime::{Backoff, Shutdown, Wake, within};
use smol::channel::{self, Receiver, Sender};
use telemetry::{
    Span, TraceContext,
    metrics::{self, IntCounterVec, IntGauge},
    span::Kind,
};
use uuid::Uuid;

use crate::{
    billing::Billing,
    billing_tasks::{Action, BillingTasks, Task},
};

/// Tasks that are tried at once.
const AT_ONCE: i64 = 16;
/// The slow look for tasks that nobody has woken us for: those of other replicas, and those that are due by time.
const LOOK: Duration = Duration::from_millis(500);
/// The pause after a first failure, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often the number of tasks is told, and up to where it is counted.
const TELL: Duration = Duration::from_secs(2);
const COUNTED: i64 = 100_000;
/// Accounts opened by requests whose tasks wait to be forgotten. Beyond it they are left to the reconciler.
const DONE_WAITING: usize = 4096;
/// Tasks that are forgotten with one statement, and how long the first of them waits for the others.
const DONE_AT_ONCE: usize = 500;
const DONE_PAUSE: Duration = Duration::from_millis(20);

static TASKS: LazyLock<IntGauge> =
    LazyLock::new(|| metrics::gauge("billing_tasks_pending", "Tasks that billing has not been told yet."));
static RECONCILED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters("billing_tasks_total", "Tasks tried by the reconciler, by outcome.", &["outcome"])
});

/// The reconciler of one instance. Several work on the same tasks without getting in each other's way.
#[derive(Clone, Debug)]
pub struct Reconciler {
    tasks: BillingTasks,
    billing: Arc<Billing>,
}

impl Reconciler {
    /// A reconciler of these tasks.
    pub fn new(tasks: BillingTasks, billing: Arc<Billing>) -> Self {
        Self { tasks, billing }
    }

    /// Tries the tasks that are due, some of them at once; gives how many there were.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn step(&self) -> Result<usize, postgres::Error> {
        // The claim outlasts the calls, so that no other instance makes the same ones meanwhile.
        let lease = self.billing.deadline() * 3 + Duration::from_secs(1);
        // While billing is away, its breaker lets one probe through now and then; more tasks would only fail.
        let limit = if self.billing.is_away() { 1 } else { AT_ONCE };
        let tasks = self.tasks.claim(limit, lease).await?;
        join_all(tasks.iter().map(|task| self.attempt(task))).await;
        Ok(tasks.len())
    }

    async fn attempt(&self, task: &Task) {
        let trace = TraceContext::continue_from(task.traceparent.as_deref());
        let mut span = Span::start(trace, Kind::Internal, "reconcile billing");
        match span.scope(self.attempt_in(task, trace)).await {
            Ok(()) => span.end(),
            Err(error) => span.fail(error.outcome()),
        }
    }

    async fn attempt_in(&self, task: &Task, trace: TraceContext) -> Result<(), CallError> {
        let outcome = match task.action {
            Action::Open => self.billing.open(task.patient_id, &task.name, &task.email, trace).await.map(drop),
            Action::Close => self.close(task, trace).await,
        };
        // A database that fails here leaves the task to be claimed again, which changes nothing at billing.
        let _ = match &outcome {
            Ok(()) => {
                RECONCILED.with_label_values(&["done"]).inc();
                let (patient_id, action, trace_id) = (task.patient_id, task.action, trace.trace_id());
                tracing::info!(trace_id, %patient_id, ?action, attempts = task.attempts + 1, "billing reconciled");
                self.tasks.done(task.action, &[task.patient_id]).await
            }
            Err(error) => {
                RECONCILED.with_label_values(&["failed"]).inc();
                if !error.is_outage() {
                    let (patient_id, action, trace_id) = (task.patient_id, task.action, trace.trace_id());
                    tracing::error!(trace_id, %patient_id, ?action, %error, "billing refuses what it has to be told");
                }
                self.tasks.postpone(task, Backoff::after(task.attempts, PAUSES.0, PAUSES.1)).await
            }
        };
        outcome
    }

    /// Closes an account. If there is none, a call to open it may still be under way and would leave an open account
    /// behind us; opened first, it stays closed whatever comes later.
    async fn close(&self, task: &Task, trace: TraceContext) -> Result<(), CallError> {
        match self.billing.close(task.patient_id, trace).await {
            Err(error) if error.code() == Some(Code::NotFound) => {
                self.billing.open(task.patient_id, &task.name, &task.email, trace).await?;
                self.billing.close(task.patient_id, trace).await
            }
            outcome => outcome,
        }
    }

    /// Does step after step until the shutdown. `wake` cuts the pauses short.
    pub async fn run(self, wake: Arc<Wake>, shutdown: Shutdown) {
        let work = async {
            loop {
                let full = matches!(self.step().await, Ok(tried) if tried as i64 == AT_ONCE);
                if !full {
                    let _ = within(LOOK, wake.wait()).await;
                }
            }
        };
        let tell = async {
            loop {
                if let Ok(count) = self.tasks.count(COUNTED).await {
                    TASKS.set(count);
                }
                smol::Timer::after(TELL).await;
            }
        };
        // A claim that is broken off here ends by itself.
        shutdown.or_stop(futures_lite::future::or(work, tell)).await;
    }
}

/// Takes the patients whose account was opened by the request itself.
#[derive(Clone, Debug)]
pub struct DoneSender(Sender<Uuid>);

impl DoneSender {
    /// Says that billing needs to be told nothing more about this new patient. Never waits.
    pub fn send(&self, patient_id: Uuid) {
        // When it is full or closed, the reconciler makes the call again, which changes nothing at billing.
        let _ = self.0.try_send(patient_id);
    }
}

/// Gives the patients to forget tasks of.
#[derive(Debug)]
pub struct DoneReceiver(Receiver<Uuid>);

/// A bounded queue of patients whose task is done.
pub fn done_queue() -> (DoneSender, DoneReceiver) {
    let (sender, receiver) = channel::bounded(DONE_WAITING);
    (DoneSender(sender), DoneReceiver(receiver))
}

impl DoneReceiver {
    /// Forgets the tasks that are done, many with one statement, until the shutdown; then those that are left.
    pub async fn run(self, tasks: BillingTasks, shutdown: Shutdown) {
        while let Some(Ok(first)) = shutdown.or_stop(self.0.recv()).await {
            shutdown.or_stop(smol::Timer::after(DONE_PAUSE)).await;
            self.forget(&tasks, vec![first]).await;
        }
        self.forget(&tasks, Vec::new()).await;
    }

    async fn forget(&self, tasks: &BillingTasks, mut done: Vec<Uuid>) {
        loop {
            while done.len() < DONE_AT_ONCE
                && let Ok(patient_id) = self.0.try_recv()
            {
                done.push(patient_id);
            }
            if done.is_empty() {
                return;
            }
            // What is not forgotten now is done again by the reconciler, which changes nothing at billing.
            let _ = tasks.done(Action::Open, &done).await;
            done.clear();
        }
    }
}
