//! The response of a broker to a fetch: batches in every codec, of committed, aborted and open transactions, decompression
//! bombs, corrupt batches and arbitrary bytes. The consumer reads what was written and not aborted, in bounded memory, and the
//! next fetch makes progress.

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

/// The maximum number of parts, and of values in a batch.
const MAX_PARTS: usize = 24;
const MAX_VALUES: usize = 8;
/// The number of transactional producers.
const PRODUCERS: u8 = 3;
/// The maximum decompressed bytes of a fetch, unless its first batch is larger; and the maximum records of a fetch.
const DECOMPRESSED_AT_ONCE: usize = 2 * 1024 * 1024;
const RECORDS_AT_ONCE: usize = 16 * 1024;

/// The contents of a partition, and a fetch.
#[derive(Arbitrary, Debug)]
pub struct Input {
    parts: Vec<BatchPart>,
    from: u8,
    largest: u8,
    /// Bytes that are missing at the end, as brokers truncate the last batch.
    missing: u8,
}

#[derive(Arbitrary, Debug)]
enum BatchPart {
    /// A batch outside a transaction.
    Batch { codec: u8, values: Vec<Vec<u8>> },
    /// A batch in a producer's transaction.
    Transactional { codec: u8, producer: u8, values: Vec<Vec<u8>> },
    /// The end of a producer's transaction.
    End { producer: u8, is_committed: bool },
    /// A decompression bomb: a batch of one value of this many KiB.
    Bomb { codec: u8, kib: u8 },
    /// A batch with arbitrary bytes as its records.
    Payload { codec: u8, count: u8, payload: Vec<u8> },
    /// A batch with one corrupt byte.
    Damaged { codec: u8, values: Vec<Vec<u8>>, at: u16, byte: u8 },
    /// Arbitrary bytes that are not a batch.
    Bytes(Vec<u8>),
}

/// What an input covered, so that a test can check that the inputs cover every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReadOutcome {
    /// Records of an aborted transaction were skipped.
    Aborted,
    /// Records of a transaction that is not aborted were read.
    Committed,
    /// A batch was too large, and skipped.
    TooLarge,
    /// Another batch was unreadable, and skipped.
    Unreadable,
    /// The response was not a sequence of batches.
    Malformed,
}

/// A transaction: its producer, and how many transactions that producer had before.
type Transaction = (u8, u32);

/// The bytes of a partition, and the records that should be read.
#[derive(Default)]
struct SentLog {
    bytes: Vec<u8>,
    next: i64,
    /// The offset and value of each record, and its transaction.
    records: Vec<(i64, Vec<u8>, Option<Transaction>)>,
    /// The first offset and number of each producer's open transaction.
    open: BTreeMap<u8, (i64, u32)>,
    ended: BTreeMap<u8, u32>,
    aborted: Vec<(i64, i64)>,
    aborted_numbers: BTreeSet<Transaction>,
    /// Whether it has bytes whose meaning is unknown.
    is_uncertain: bool,
}

impl SentLog {
    fn append(&mut self, batch: &Bytes, count: usize) -> i64 {
        let first = self.next;
        self.bytes.extend(at_offset(batch, first));
        self.next += count as i64;
        first
    }

    fn write(&mut self, part: BatchPart) {
        match part {
            BatchPart::Batch { codec: number, values } => {
                let records = records(values);
                let first = self.append(&batch(codec(number), &records), records.len());
                self.note(first, records, None);
            }
            BatchPart::Transactional { codec: number, producer, values } => {
                let (producer, records) = (producer % PRODUCERS, records(values));
                let number_before = self.ended.get(&producer).copied().unwrap_or_default();
                let first = self.append(&transactional_batch(codec(number), producer.into(), &records), records.len());
                let (_, number) = *self.open.entry(producer).or_insert((first, number_before));
                self.note(first, records, Some((producer, number)));
            }
            BatchPart::End { producer, is_committed } => {
                let producer = producer % PRODUCERS;
                // A broker writes no marker without a transaction.
                let Some((first, number)) = self.open.remove(&producer) else { return };
                self.append(&transaction_marker(producer.into(), is_committed, time()), 1);
                self.ended.insert(producer, number + 1);
                if !is_committed {
                    self.aborted.push((producer.into(), first));
                    self.aborted_numbers.insert((producer, number));
                }
            }
            BatchPart::Bomb { codec: number, kib } => {
                let length = usize::from(kib) * 1024;
                let first = self.append(&bomb(codec(number), length), 1);
                self.records.push((first, vec![0; length], None));
            }
            BatchPart::Payload { codec: number, count, payload } => {
                let count = usize::from(count).max(1);
                self.append(&batch_of_bytes(codec(number), count, &payload), count);
                self.is_uncertain = true;
            }
            BatchPart::Damaged { codec: number, values, at, byte } => {
                let records = records(values);
                let begin = self.bytes.len();
                self.append(&batch(codec(number), &records), records.len());
                let length = self.bytes.len() - begin;
                self.bytes[begin + usize::from(at) % length] = byte;
                self.is_uncertain = true;
            }
            BatchPart::Bytes(bytes) => {
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

/// Writes the parts and fetches them.
pub fn check(input: Input) -> BTreeSet<ReadOutcome> {
    let Input { parts, from, largest, missing } = input;
    let mut log = SentLog::default();
    parts.into_iter().take(MAX_PARTS).for_each(|part| log.write(part));
    let from = if log.next > 0 { i64::from(from) % log.next } else { 0 };
    let largest = 1024 << (largest % 9);
    let cut = log.bytes.len() - usize::from(missing / 2).min(log.bytes.len());
    let sent = Bytes::copy_from_slice(&log.bytes[..cut]);

    let mut outcomes = BTreeSet::new();
    let Ok(DecodedRecords { records, next, unreadable, .. }) = decode(sent.clone(), from, log.aborted.clone(), largest)
    else {
        assert!(log.is_uncertain, "these are valid batches");
        return [ReadOutcome::Malformed].into();
    };
    assert!(next >= from);
    let got: Vec<(i64, Vec<u8>)> =
        records.iter().map(|record| (record.offset, record.value.unwrap_or_default().to_vec())).collect();
    assert!(got.iter().all(|(offset, _)| *offset >= from) && got.len() <= RECORDS_AT_ONCE);
    let bytes: usize = got.iter().map(|(_, value)| value.len()).sum();
    assert!(bytes <= sent.len() + largest.max(DECOMPRESSED_AT_ONCE), "{bytes} of {}", sent.len());
    if let Some(unreadable) = unreadable {
        assert!(got.is_empty() && next > from && unreadable.first_offset >= from && unreadable.last_offset == next - 1);
        outcomes.insert(match unreadable.reason {
            kafka::Malformed::TooLarge => ReadOutcome::TooLarge,
            _ => ReadOutcome::Unreadable,
        });
    }
    if log.is_uncertain {
        return outcomes;
    }
    let is_aborted =
        |transaction: &Option<Transaction>| transaction.is_some_and(|it| log.aborted_numbers.contains(&it));
    let passed = log.records.iter().filter(|(offset, ..)| (from..next).contains(offset));
    if passed.clone().any(|(_, _, transaction)| is_aborted(transaction)) {
        outcomes.insert(ReadOutcome::Aborted);
    }
    if passed.clone().any(|(_, _, transaction)| transaction.is_some() && !is_aborted(transaction)) {
        outcomes.insert(ReadOutcome::Committed);
    }
    if unreadable.is_none() {
        let expected = passed.filter(|(_, _, transaction)| !is_aborted(transaction));
        assert!(expected.map(|(offset, value, _)| (*offset, value.clone())).eq(got), "up to {next}");
        // Every complete batch is read, within the limits.
        assert!(next > from || cut < log.bytes.len() || log.next == 0, "the next fetch makes no progress");
    }
    outcomes
}

fn codec(number: u8) -> Codec {
    Codec::ALL[usize::from(number) % Codec::ALL.len()]
}

fn time() -> DateTime<Utc> {
    DateTime::UNIX_EPOCH
}

/// At least one: a batch is not empty.
fn records(mut values: Vec<Vec<u8>>) -> Vec<Record> {
    values.truncate(MAX_VALUES);
    if values.is_empty() {
        values.push(Vec::new());
    }
    let record = |value| Record { key: None, value: Some(value), headers: Vec::new(), timestamp: time() };
    values.into_iter().map(record).collect()
}
