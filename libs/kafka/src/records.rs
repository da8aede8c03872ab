use bytes::Bytes;

use crate::{Malformed, RecordRef, batch::Batch};

/// Records of one fetch, in the bytes that the broker sent. They have been checked as a whole, so that reading them
/// cannot fail; only compressed ones take memory beside those bytes.
#[derive(Debug, Default)]
pub struct Records {
    batches: Vec<Batch>,
    from: i64,
}

impl Records {
    /// Reads what a broker sent for the offset `from`; gives the offset to ask for next, too. Brokers begin with the
    /// whole batch that has the offset, and may end with a part of one.
    pub(crate) fn read(mut bytes: Bytes, from: i64) -> Result<(Self, i64), Malformed> {
        let (mut batches, mut next) = (Vec::new(), from);
        while let Some((batch, after)) = Batch::take(&mut bytes)? {
            if after > next && !batch.is_control() {
                batches.push(batch);
            }
            next = next.max(after);
        }
        Ok((Self { batches, from }, next))
    }

    /// The records, in order.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        self.batches.iter().flat_map(Batch::iter).filter(|record| record.offset >= self.from)
    }

    /// How many there are at most: those of their batches that come before the asked offset are among them.
    pub fn at_most(&self) -> usize {
        self.batches.iter().map(Batch::count).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

#[cfg(test)]
mod tests;
