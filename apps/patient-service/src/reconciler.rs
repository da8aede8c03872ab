//! Makes the calls to billing that a request could not finish in time: opens accounts that are `PENDING`, closes those of
//! deleted patients. A task is retried with growing pauses until it succeeds, or until billing has rejected it so often that
//! it is dead-lettered.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::future::join_all;
use grpc::{CallError, Code, FailureKind};
use runtime::{Backoff, Notify, Shutdown, timeout};
use telemetry::{
    Span, SpanKind, TraceContext,
    metrics::{self, IntCounterVec, IntGauge},
};

use crate::{
    billing::Billing,
    billing_tasks::{Action, BillingTasks, Counts, RECONCILE_AFTER, Task},
};

/// Tasks that are tried at once: they share a claim, billing's statements, and the deletion.
const MAX_CONCURRENT: i64 = 64;
/// Poll interval for tasks that other replicas have written or that become due.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Pauses after failures: the first and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Interval between reports of the number of tasks.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Rejections after which a task is dead-lettered. More than one, because during a rollout another version of billing may
/// reject it.
const MAX_REJECTIONS: u32 = 5;
/// Calls of one attempt at most, each of which ends within billing's deadline: to close, to open, for the account, to close
/// and for the account.
const MAX_CALLS: u32 = 5;

static TASKS: LazyLock<IntGauge> =
    LazyLock::new(|| metrics::gauge("billing_tasks_pending", "Billing tasks that are pending."));
static DEAD_LETTERS: LazyLock<IntGauge> = LazyLock::new(|| {
    metrics::gauge("billing_task_dead_letters", "Billing tasks that are dead-lettered, in billing_task_dead_letters.")
});
static RECONCILED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::counters("billing_tasks_total", "Attempts at billing tasks by the reconciler, by outcome.", &["outcome"])
});

/// The reconciler of one replica. Reconcilers of several replicas claim different tasks.
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

    /// Makes an attempt at tasks that are due, some of them concurrently; returns how many.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn step(&self) -> Result<usize, postgres::Error> {
        let deadline = self.billing.deadline();
        // The claim outlasts the calls, so that no other replica makes the same ones.
        let lease = deadline * MAX_CALLS + Duration::from_secs(1);
        // Longer than any task is postponed, with a second for small adjustments of the clock.
        let longest_wait = lease.max(BACKOFF.1).max(deadline + RECONCILE_AFTER) + Duration::from_secs(1);
        // While the circuit breaker is open, only a probe is let through now and then; more tasks would only fail.
        let limit = if self.billing.is_unavailable() { 1 } else { MAX_CONCURRENT };
        let tasks = self.tasks.claim(limit, lease, longest_wait).await?;
        let done = join_all(tasks.iter().map(|task| self.attempt(task))).await;
        for action in [Action::Open, Action::Close] {
            let done = tasks.iter().zip(&done).filter(|(task, done)| **done && task.action == action);
            let patients: Vec<_> = done.map(|(task, _)| task.patient_id).collect();
            if !patients.is_empty() {
                // A database that fails here leaves the tasks to be claimed again, which changes nothing at billing.
                let _ = self.tasks.complete(action, &patients).await;
            }
        }
        Ok(tasks.len())
    }

    /// Makes one attempt; returns whether the task is done.
    async fn attempt(&self, task: &Task) -> bool {
        let trace = TraceContext::continue_from(task.traceparent.as_deref());
        let mut span = Span::start(trace, SpanKind::Internal, "reconcile billing");
        let outcome = span.scope(self.attempt_in(task, trace)).await;
        match &outcome {
            Ok(()) => span.end(),
            Err(error) => span.fail(error.outcome()),
        }
        outcome.is_ok()
    }

    async fn attempt_in(&self, task: &Task, trace: TraceContext) -> Result<(), CallError> {
        let outcome = match task.action {
            Action::Open => self.open(task, trace).await,
            Action::Close => self.close(task, trace).await,
        };
        let (patient_id, action, trace_id, attempts) =
            (task.patient_id, task.action, trace.trace_id(), task.attempts.saturating_add(1));
        // A database that fails here leaves the task to be claimed again.
        let _ = match &outcome {
            Ok(()) => {
                RECONCILED.with_label_values(&["done"]).inc();
                tracing::info!(trace_id, %patient_id, ?action, attempts, "billing reconciled");
                Ok(())
            }
            Err(error) if is_final(error, task.action) && task.rejections + 1 >= MAX_REJECTIONS => {
                let moved = self.tasks.dead_letter(task, &error.to_string()).await;
                if moved.is_ok() {
                    RECONCILED.with_label_values(&["dead_lettered"]).inc();
                    tracing::error!(trace_id, %patient_id, ?action, %error, attempts,
                        "billing task dead-lettered; it is in billing_task_dead_letters");
                }
                moved
            }
            Err(error) => {
                RECONCILED.with_label_values(&["failed"]).inc();
                let rejected = is_rejection(error);
                if rejected && task.rejections == 0 {
                    tracing::warn!(trace_id, %patient_id, ?action, %error,
                        "billing rejected a reconciliation call; it is retried");
                }
                self.tasks.postpone(task, Backoff::after(task.attempts, BACKOFF.0, BACKOFF.1), rejected).await
            }
        };
        outcome
    }

    /// Opens an account. Our billing-service answers with the account that there is; another may answer ALREADY_EXISTS after a
    /// call whose answer was lost, and also for the email of another patient.
    async fn open(&self, task: &Task, trace: TraceContext) -> Result<(), CallError> {
        match self.billing.open(task.patient_id, &task.name, &task.email, trace).await {
            Err(error) if error.code() == Some(Code::AlreadyExists) => {
                match self.billing.account(task.patient_id, trace).await {
                    Ok(_) => Ok(()),
                    Err(other) => Err(unless_unanswered(error, other)),
                }
            }
            outcome => outcome.map(drop),
        }
    }

    /// Closes an account. If there is none, a call to open it may still be in flight and would leave an open account behind;
    /// so it is opened and closed here, and stays closed.
    async fn close(&self, task: &Task, trace: TraceContext) -> Result<(), CallError> {
        let mut outcome = self.billing.close(task.patient_id, trace).await;
        if matches!(&outcome, Err(error) if error.code() == Some(Code::NotFound)) {
            self.open(task, trace).await?;
            outcome = self.billing.close(task.patient_id, trace).await;
        }
        match outcome {
            // Our billing-service closes a closed account again. Another may reject that, and also to close one with a balance.
            Err(error) if error.code() == Some(Code::FailedPrecondition) => {
                match self.billing.account(task.patient_id, trace).await {
                    Ok((account, _)) if account.status == "CLOSED" => Ok(()),
                    Ok(_) => Err(error),
                    Err(other) => Err(unless_unanswered(error, other)),
                }
            }
            outcome => outcome,
        }
    }

    /// Runs until the shutdown. `notify` cuts the pauses short.
    pub async fn run(self, notify: Arc<Notify>, shutdown: Shutdown) {
        let work = async {
            loop {
                // `Database` logs a failure.
                let full = matches!(self.step().await, Ok(tried) if tried as i64 == MAX_CONCURRENT);
                if !full {
                    let _ = timeout(POLL_INTERVAL, notify.wait()).await;
                }
            }
        };
        let report = async {
            loop {
                if let Ok(Counts { pending, dead_letters }) = self.tasks.count().await {
                    TASKS.set(pending);
                    DEAD_LETTERS.set(dead_letters);
                }
                smol::Timer::after(REPORT_INTERVAL).await;
            }
        };
        // Claims of attempts that are cancelled here expire.
        shutdown.run_until_stopped(futures_lite::future::or(work, report)).await;
    }
}

/// The rejection of a call, unless the question for the account failed for a reason that ends: then that.
fn unless_unanswered(rejection: CallError, of_account: CallError) -> CallError {
    if is_of_the_call(&of_account) { rejection } else { of_account }
}

/// Whether billing answered and rejected the call.
fn is_rejection(error: &CallError) -> bool {
    let lacks_permission = matches!(error.code(), Some(Code::PermissionDenied | Code::Unauthenticated));
    lacks_permission || is_of_the_call(error)
}

/// Whether the same call is rejected whoever makes it, as long as billing and its data are the same.
fn is_of_the_call(error: &CallError) -> bool {
    matches!(error.kind(), FailureKind::Rejected | FailureKind::Invalid | FailureKind::Unsupported)
}

/// Whether billing rejects this very task: it cannot close accounts, as an original's billing service, or rejects the content.
/// Every billing service can open accounts: if it lacks that, a proxy has answered for it. That and missing permissions concern
/// all tasks and end with a change of configuration, so they are retried.
fn is_final(error: &CallError, action: Action) -> bool {
    match error.kind() {
        FailureKind::Rejected | FailureKind::Invalid => true,
        FailureKind::Unsupported => action == Action::Close,
        FailureKind::Unavailable | FailureKind::Transient => false,
    }
}
