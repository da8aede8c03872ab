use std::mem;

use smol::Task;

use crate::outbox::Outbox;

/// Events that wait to be deleted, at most: more of them, and the relay waits for a deletion before it reads on.
const MOST: usize = 2_000;

/// Deletes from the outbox what the broker has acknowledged, while the next events are read and sent: a deletion is a
/// commit, and an event that comes meanwhile need not wait for the disk.
///
/// One statement is under way at a time; what is acknowledged meanwhile goes with the next one. If a statement fails, its
/// events are read and published again.
#[derive(Debug)]
pub(super) struct Forgetting {
    outbox: Outbox,
    under_way: Option<Deletion>,
    next: Vec<i64>,
}

#[derive(Debug)]
struct Deletion {
    ids: Vec<i64>,
    statement: Task<Result<(), postgres::Error>>,
}

impl Forgetting {
    pub(super) fn new(outbox: Outbox) -> Self {
        Self { outbox, under_way: None, next: Vec::new() }
    }

    /// Begins to delete these, or has them wait for the statement under way.
    pub(super) fn add(&mut self, acknowledged: Vec<i64>) {
        self.next.extend(acknowledged);
        self.begin();
    }

    /// Takes the outcome of a statement that has ended, and begins the next one; waits for it if too many events do.
    ///
    /// # Errors
    /// If the statement failed.
    pub(super) async fn keep_up(&mut self) -> Result<(), postgres::Error> {
        if self.under_way.as_ref().is_some_and(|deletion| deletion.statement.is_finished()) || self.len() > MOST {
            self.end().await?;
        }
        Ok(())
    }

    /// Deletes all that is left.
    ///
    /// # Errors
    /// If a statement failed.
    pub(super) async fn finish(&mut self) -> Result<(), postgres::Error> {
        while self.len() > 0 {
            self.end().await?;
        }
        Ok(())
    }

    /// The events that are acknowledged and may still be in the outbox.
    pub(super) fn ids(&self) -> impl Iterator<Item = i64> {
        self.under_way.iter().flat_map(|deletion| &deletion.ids).chain(&self.next).copied()
    }

    fn len(&self) -> usize {
        self.ids().count()
    }

    async fn end(&mut self) -> Result<(), postgres::Error> {
        let outcome = match self.under_way.take() {
            Some(deletion) => deletion.statement.await,
            None => Ok(()),
        };
        self.begin();
        outcome
    }

    fn begin(&mut self) {
        if self.under_way.is_some() || self.next.is_empty() {
            return;
        }
        let ids = mem::take(&mut self.next);
        let (outbox, deleted) = (self.outbox.clone(), ids.clone());
        let statement = runtime::spawn(async move { outbox.delete(&deleted).await });
        self.under_way = Some(Deletion { ids, statement });
    }
}
