//! What a broker sends for a fetch: batches in every codec, of transactions that are committed, aborted or open, bombs, damage
//! and bytes that are no batches. What is read is what was written and not aborted, up to a limit of memory, and the next
//! fetch gets further.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::Arbitrary;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use kafka::{
    Record,
    testing::{
        Codec, DecodedRecords, at_offset, batch, batch_of_bytes, bomb, decode, transaction_marker, transactional_batch,
    },
};

/// So many parts and values are looked at.
const PARTS: usize = 24;
const VALUES: usize = 8;
/// Producers of transactions.
const PRODUCERS: u8 = 3;
/// Bytes that the batches of one fetch are decompressed to, unless the first is larger; and records of one fetch.
const DECOMPRESSED_AT_ONCE: usize = 2 * 1024 * 1024;
const RECORDS_AT_ONCE: usize = 16 * 1024;

/// What a broker sends, and what is asked for.
#[derive(Arbitrary, Debug)]
pub struct Input {
    parts: Vec<Part>,
    from: u8,
    largest: u8,
    /// Bytes that are missing at the end, as brokers cut off what they send.
    missing: u8,
}

#[derive(Arbitrary, Debug)]
enum Part {
    /// A batch that belongs to no transaction.
    Batch { codec: u8, values: Vec<Vec<u8>> },
    /// One of a producer's transaction.
    Transactional { codec: u8, producer: u8, values: Vec<Vec<u8>> },
    /// The end of it.
    End { producer: u8, is_committed: bool },
    /// A batch of one value of so many KiB.
    Bomb { codec: u8, kib: u8 },
    /// A batch whose records are these bytes.
    Payload { codec: u8, count: u8, payload: Vec<u8> },
    /// A batch in which one byte is another one.
    Damaged { codec: u8, values: Vec<Vec<u8>>, at: u16, byte: u8 },
    /// No batch.
    Bytes(Vec<u8>),
}

/// What was among an input and what was read of it, so that a test can tell whether inputs are of any use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Records of an aborted transaction were left out of exactly what was expected.
    Aborted,
    /// Records of a transaction that is not aborted were read.
    Committed,
    /// A batch was too large, and passed.
    TooLarge,
    /// Another batch could not be read, and was passed.
    Unreadable,
    /// What was sent are no batches.
    Malformed,
}

/// A transaction: its producer, and how many that one began before.
type Transaction = (u8, u32);

/// What is written, with what should be read of it.
#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    next: i64,
    /// Offset, value, and the transaction that it belongs to.
    records: Vec<(i64, Vec<u8>, Option<Transaction>)>,
    /// First offset and number of each producer's transaction that has not ended.
    open: BTreeMap<u8, (i64, u32)>,
    ended: BTreeMap<u8, u32>,
    aborted: Vec<(i64, i64)>,
    aborted_numbers: BTreeSet<Transaction>,
    /// Whether something was written of which it is not known what it is.
    is_uncertain: bool,
}

impl Log {
    fn append(&mut self, batch: &Bytes, count: usize) -> i64 {
        let first = self.next;
        self.bytes.extend(at_offset(batch, first));
        self.next += count as i64;
        first
    }

    fn write(&mut self, part: Part) {
        match part {
            Part::Batch { codec: number, values } => {
                let records = records(values);
                let first = self.append(&batch(codec(number), &records), records.len());
                self.note(first, records, None);
            }
            Part::Transactional { codec: number, producer, values } => {
                let (producer, records) = (producer % PRODUCERS, records(values));
                let number_before = self.ended.get(&producer).copied().unwrap_or_default();
                let first = self.append(&transactional_batch(codec(number), producer.into(), &records), records.len());
                let (_, number) = *self.open.entry(producer).or_insert((first, number_before));
                self.note(first, records, Some((producer, number)));
            }
            Part::End { producer, is_committed } => {
                let producer = producer % PRODUCERS;
                // A broker writes none without a transaction.
                let Some((first, number)) = self.open.remove(&producer) else { return };
                self.append(&transaction_marker(producer.into(), is_committed, time()), 1);
                self.ended.insert(producer, number + 1);
                if !is_committed {
                    self.aborted.push((producer.into(), first));
                    self.aborted_numbers.insert((producer, number));
                }
            }
            Part::Bomb { codec: number, kib } => {
                let length = usize::from(kib) * 1024;
                let first = self.append(&bomb(codec(number), length), 1);
                self.records.push((first, vec![0; length], None));
            }
            Part::Payload { codec: number, count, payload } => {
                let count = usize::from(count).max(1);
                self.append(&batch_of_bytes(codec(number), count, &payload), count);
                self.is_uncertain = true;
            }
            Part::Damaged { codec: number, values, at, byte } => {
                let records = records(values);
                let begin = self.bytes.len();
                self.append(&batch(codec(number), &records), records.len());
                let length = self.bytes.len() - begin;
                self.bytes[begin + usize::from(at) % length] = byte;
                self.is_uncertain = true;
            }
            Part::Bytes(bytes) => {
                self.bytes.extend(bytes);
                self.is_uncertain = true;
            }
        }
    }

    fn note(&mut self, first: i64, records: Vec<Record>, transaction: Option<Transaction>) {
        let values = records.into_iter().map(|record| record.value.unwrap_or_default());
        self.records.extend((first..).zip(values).map(|(offset, value)| (offset, value, transaction)));
    }
}

/// Writes the parts and reads them.
pub fn check(input: Input) -> BTreeSet<Outcome> {
    let Input { parts, from, largest, missing } = input;
    let mut log = Log::default();
    parts.into_iter().take(PARTS).for_each(|part| log.write(part));
    let from = if log.next > 0 { i64::from(from) % log.next } else { 0 };
    let largest = 1024 << (largest % 9);
    let cut = log.bytes.len() - usize::from(missing / 2).min(log.bytes.len());
    let sent = Bytes::copy_from_slice(&log.bytes[..cut]);

    let mut seen = BTreeSet::new();
    let Ok(DecodedRecords { records, next, unreadable }) = decode(sent.clone(), from, log.aborted.clone(), largest)
    else {
        assert!(log.is_uncertain, "what was sent are batches");
        return [Outcome::Malformed].into();
    };
    assert!(next >= from);
    let got: Vec<(i64, Vec<u8>)> =
        records.iter().map(|record| (record.offset, record.value.unwrap_or_default().to_vec())).collect();
    assert!(got.iter().all(|(offset, _)| *offset >= from) && got.len() <= RECORDS_AT_ONCE);
    let bytes: usize = got.iter().map(|(_, value)| value.len()).sum();
    assert!(bytes <= sent.len() + largest.max(DECOMPRESSED_AT_ONCE), "{bytes} of {}", sent.len());
    if let Some(unreadable) = unreadable {
        assert!(got.is_empty() && next > from && unreadable.first_offset >= from && unreadable.last_offset == next - 1);
        seen.insert(match unreadable.reason {
            kafka::Malformed::TooLarge => Outcome::TooLarge,
            _ => Outcome::Unreadable,
        });
    }
    if log.is_uncertain {
        return seen;
    }
    let is_aborted =
        |transaction: &Option<Transaction>| transaction.is_some_and(|it| log.aborted_numbers.contains(&it));
    let passed = log.records.iter().filter(|(offset, ..)| (from..next).contains(offset));
    if passed.clone().any(|(_, _, transaction)| is_aborted(transaction)) {
        seen.insert(Outcome::Aborted);
    }
    if passed.clone().any(|(_, _, transaction)| transaction.is_some() && !is_aborted(transaction)) {
        seen.insert(Outcome::Committed);
    }
    if unreadable.is_none() {
        let expected = passed.filter(|(_, _, transaction)| !is_aborted(transaction));
        assert!(expected.map(|(offset, value, _)| (*offset, value.clone())).eq(got), "up to {next}");
        // All that is whole is read, unless it would be too much.
        assert!(next > from || cut < log.bytes.len() || log.next == 0, "the next fetch is the same");
    }
    seen
}

fn codec(number: u8) -> Codec {
    Codec::ALL[usize::from(number) % Codec::ALL.len()]
}

fn time() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH
}

/// A batch has one at least.
fn records(mut values: Vec<Vec<u8>>) -> Vec<Record> {
    values.truncate(VALUES);
    if values.is_empty() {
        values.push(Vec::new());
    }
    let record = |value| Record { key: None, value: Some(value), headers: Vec::new(), timestamp: time() };
    values.into_iter().map(record).collect()
}
