//! Deletes the tasks whose call a request has made itself, many with one statement.

use std::time::Duration;

use runtime::{Backoff, Shutdown};
use smol::channel::{self, Receiver, Sender};
use uuid::Uuid;

use crate::billing_tasks::{Action, BillingTasks};

/// Patients that wait in the queue at most. The tasks of further ones are left to the reconciler.
const MAX_QUEUED: usize = 4096;
/// Tasks that one statement deletes at most, and how long the first of them waits for others: much shorter than the time after
/// which a task is due and the reconciler makes the call again.
const MAX_BATCH: usize = 500;
const LINGER: Duration = Duration::from_millis(200);
/// The first pause while the database cannot delete them, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Takes the patients whose account was opened by the request itself.
#[derive(Clone, Debug)]
pub struct CompletedTasks(Sender<Uuid>);

impl CompletedTasks {
    /// Hands over the task of a new patient whose account is open, to be deleted. Never waits.
    pub fn send(&self, patient_id: Uuid) {
        // When the queue is full or closed, the reconciler makes the call again, which changes nothing at billing.
        let _ = self.0.try_send(patient_id);
    }
}

/// Deletes the tasks of those patients.
#[derive(Debug)]
pub struct CompletedTaskDeleter(Receiver<Uuid>);

/// A bounded queue of patients whose task is done.
pub fn completed_tasks() -> (CompletedTasks, CompletedTaskDeleter) {
    let (sender, receiver) = channel::bounded(MAX_QUEUED);
    (CompletedTasks(sender), CompletedTaskDeleter(receiver))
}

impl CompletedTaskDeleter {
    /// Deletes tasks, many with one statement, until the shutdown; then those that are left. Those that the database could
    /// not delete are tried again, so that their calls are not made once more meanwhile.
    pub async fn run(self, tasks: BillingTasks, shutdown: Shutdown) {
        let (mut done, mut backoff) = (Vec::new(), Backoff::new(BACKOFF.0, BACKOFF.1));
        while !shutdown.is_triggered() {
            if done.is_empty() {
                let Some(Ok(first)) = shutdown.run_until_stopped(self.0.recv()).await else { break };
                done.push(first);
                // More come meanwhile, and go with it.
                shutdown.run_until_stopped(smol::Timer::after(LINGER)).await;
            }
            // `Database` logs a failure.
            match self.delete(&tasks, &mut done).await {
                Ok(()) => backoff.reset(),
                Err(_) => drop(shutdown.run_until_stopped(backoff.pause()).await),
            }
        }
        // What is left now is done again by a reconciler, which changes nothing at billing.
        let _ = self.delete(&tasks, &mut done).await;
    }

    /// Deletes what is done until there is nothing more; `done` keeps what a failure leaves.
    async fn delete(&self, tasks: &BillingTasks, done: &mut Vec<Uuid>) -> Result<(), postgres::Error> {
        loop {
            while done.len() < MAX_BATCH
                && let Ok(patient_id) = self.0.try_recv()
            {
                done.push(patient_id);
            }
            if done.is_empty() {
                return Ok(());
            }
            tasks.complete(Action::Open, done).await?;
            done.clear();
        }
    }
}
