//! The bodies of responses, and how those of several instances become one.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike as _, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    counts::Counts,
    members::Member,
    read_model::{Position, Snapshot},
};

/// The summary, of one instance or of all.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SummaryBody {
    #[serde(flatten)]
    pub(super) counts: CountsBody,
    pub(super) partitions: Vec<PartitionBody>,
    #[serde(flatten)]
    pub(super) missing: MissingBody,
}

/// The partitions that nobody has answered for. It is empty if the answer is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MissingBody {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) partial: bool,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) missing_partitions: BTreeSet<i32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CountsBody {
    pub(super) active_patients: i64,
    pub(super) created: i64,
    pub(super) updated: i64,
    pub(super) deleted: i64,
    pub(super) unknown: i64,
    pub(super) age_bands: Vec<BandBody>,
    pub(super) last_event_time: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BandBody {
    ages: String,
    patients: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PartitionBody {
    partition: i32,
    /// The offset of the last record applied; -1 before the first.
    applied_offset: i64,
    lag: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    halted: Option<String>,
}

/// What one instance answers another: an item for each of its partitions, and one for what is of no single partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct InstanceBody<T> {
    /// The same in all answers of an instance, and in no other's.
    pub(super) instance: Uuid,
    pub(super) parts: Vec<PartBody<T>>,
}

/// The summary of one instance in the form of all summaries, with what others need to add it to theirs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OwnSummaryBody {
    #[serde(flatten)]
    summary: SummaryBody,
    /// The copies of other members' partitions, which count for nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    standbys: Vec<PartitionBody>,
    #[serde(flatten)]
    own: InstanceBody<CountsBody>,
}

/// What an instance has of a partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PartBody<T> {
    /// None for what is of no single partition.
    pub(super) partition: Option<PartitionBody>,
    pub(super) data: T,
}

/// Registrations by period.
pub(super) type Series = BTreeMap<String, i64>;

/// What a whole answer has.
pub(super) struct Expected {
    partitions: BTreeSet<i32>,
    /// Nobody knows the partitions yet, and somebody has not answered, or nothing is assigned.
    is_unknown: bool,
}

impl Expected {
    /// The partitions of all members, and of the topic.
    pub(super) fn new(members: &[Member], snapshot: &Snapshot, is_complete: bool) -> Self {
        let of_members = members.iter().flat_map(|member| member.partitions.iter().copied());
        let partitions: BTreeSet<i32> = of_members.chain(0..snapshot.topic_partitions).collect();
        Self { is_unknown: partitions.is_empty() && (members.is_empty() || !is_complete), partitions }
    }

    /// What is missing if there are only these partitions.
    pub(super) fn without(&self, is_there: impl Fn(i32) -> bool) -> MissingBody {
        let missing = self.partitions.iter().copied().filter(|partition| !is_there(*partition));
        let missing_partitions: BTreeSet<i32> = missing.collect();
        MissingBody { partial: self.is_unknown || !missing_partitions.is_empty(), missing_partitions }
    }
}

impl From<&Counts> for CountsBody {
    fn from(counts: &Counts) -> Self {
        let bands = counts.age_bands(Utc::now().year());
        Self {
            active_patients: counts.active,
            created: counts.created,
            updated: counts.updated,
            deleted: counts.deleted,
            unknown: counts.unknown,
            age_bands: bands.into_iter().map(|(ages, patients)| BandBody { ages: ages.to_owned(), patients }).collect(),
            last_event_time: counts.last_event,
        }
    }
}

impl CountsBody {
    fn add(&mut self, other: Self) {
        self.active_patients += other.active_patients;
        self.created += other.created;
        self.updated += other.updated;
        self.deleted += other.deleted;
        self.unknown += other.unknown;
        for band in other.age_bands {
            match self.age_bands.iter_mut().find(|known| known.ages == band.ages) {
                Some(known) => known.patients += band.patients,
                None => self.age_bands.push(band),
            }
        }
        self.last_event_time = self.last_event_time.max(other.last_event_time);
    }
}

impl PartitionBody {
    fn new(partition: i32, position: &Position) -> Self {
        Self { partition, applied_offset: position.next - 1, lag: position.lag(), halted: position.halted.clone() }
    }
}

impl SummaryBody {
    /// The summary of this instance.
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        let partitions =
            snapshot.partitions.iter().map(|(partition, position)| PartitionBody::new(*partition, position));
        let partitions = partitions.collect();
        Self { counts: (&snapshot.counts).into(), partitions, missing: MissingBody::default() }
    }

    /// The summary of several instances.
    pub(super) fn merge(answers: Vec<InstanceBody<CountsBody>>, expected: &Expected) -> Self {
        let (parts, missing) = merge(answers, expected);
        // For the names of the bands, if there is no part.
        let (mut counts, mut partitions) = (CountsBody::from(&Counts::default()), Vec::new());
        for PartBody { partition, data } in parts {
            counts.add(data);
            partitions.extend(partition);
        }
        Self { counts, partitions, missing }
    }
}

impl OwnSummaryBody {
    pub(super) fn new(instance: Uuid, snapshot: &Snapshot) -> Self {
        let own = InstanceBody::new(instance, snapshot, |counts| counts.into());
        let standbys = snapshot.standbys.iter().map(|(partition, position)| PartitionBody::new(*partition, position));
        Self { summary: SummaryBody::new(snapshot), standbys: standbys.collect(), own }
    }
}

impl<T> InstanceBody<T> {
    /// The answer of this instance, with what `data` takes from counts.
    pub(super) fn new(instance: Uuid, snapshot: &Snapshot, data: impl Fn(&Counts) -> T) -> Self {
        let no_counts = Counts::default();
        let of = |partition| data(snapshot.by_partition.get(partition).unwrap_or(&no_counts));
        let parts = snapshot.partitions.iter().map(|(partition, position)| PartBody {
            partition: Some(PartitionBody::new(*partition, position)),
            data: of(Some(*partition)),
        });
        let rest = snapshot.by_partition.get(None).map(|counts| PartBody { partition: None, data: data(counts) });
        Self { instance, parts: parts.chain(rest).collect() }
    }
}

/// The series of several instances.
pub(super) fn merge_series(answers: Vec<InstanceBody<Series>>, expected: &Expected) -> (Series, MissingBody) {
    let (parts, missing) = merge(answers, expected);
    let mut series = Series::new();
    for (period, registrations) in parts.into_iter().flat_map(|part| part.data) {
        *series.entry(period).or_default() += registrations;
    }
    series.retain(|_, registrations| *registrations != 0);
    (series, missing)
}

/// One part for each partition, in their order, and what is of no single partition. While a partition moves, two instances may answer
/// for it: then the one counts that has applied more.
fn merge<T>(answers: Vec<InstanceBody<T>>, expected: &Expected) -> (Vec<PartBody<T>>, MissingBody) {
    let mut instances = BTreeSet::new();
    let (mut by_partition, mut rest) = (BTreeMap::<i32, PartBody<T>>::new(), Vec::new());
    for answer in answers {
        if !instances.insert(answer.instance) {
            continue;
        }
        for part in answer.parts {
            let Some(PartitionBody { partition, applied_offset, .. }) = part.partition else {
                rest.push(part);
                continue;
            };
            let known = by_partition.get(&partition).and_then(|known| known.partition.as_ref());
            if known.is_none_or(|known| known.applied_offset < applied_offset) {
                by_partition.insert(partition, part);
            }
        }
    }
    let missing = expected.without(|partition| by_partition.contains_key(&partition));
    (by_partition.into_values().chain(rest).collect(), missing)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn snapshot(partitions: &[(i32, i64, i64)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut counts = crate::partition_counts::PartitionCounts::default();
        for (partition, created, _) in partitions {
            let counts = counts.of(Some(*partition));
            (counts.created, counts.active) = (*created, *created);
            counts.births.insert(Some(2000), *created);
            counts.registrations.insert("2024-02-29".parse().ok(), *created);
        }
        snapshot.load(counts);
        snapshot.assign(
            partitions.iter().map(|(partition, _, next)| (*partition, Position { next: *next, ..Position::default() })),
        );
        snapshot
    }

    fn whole_topic(topic_partitions: i32) -> Expected {
        Expected::new(&[], &Snapshot { topic_partitions, ..Snapshot::default() }, true)
    }

    #[test]
    fn an_answer_without_somebody_is_partial_also_before_the_partitions_are_known() {
        let member = |partitions| Member { address: "a:1".to_owned(), partitions, is_self: false };
        let one = [member(Vec::new())];
        for (members, is_complete, partial) in [(&one[..], true, false), (&one, false, true), (&[], true, true)] {
            let expected = Expected::new(members, &Snapshot::default(), is_complete);
            assert_eq!(expected.without(|_| false), MissingBody { partial, missing_partitions: BTreeSet::new() });
        }
        let member = member(vec![4]);
        let missing = Expected::new(&[member], &Snapshot::default(), false).without(|_| false);
        assert_eq!(missing.missing_partitions, [4].into());
    }

    fn answer(instance: u128, partitions: &[(i32, i64, i64)]) -> InstanceBody<CountsBody> {
        let answer = OwnSummaryBody::new(Uuid::from_u128(instance), &snapshot(partitions));
        // As it comes from another instance.
        serde_json::from_slice(&serde_json::to_vec(&answer).unwrap()).unwrap()
    }

    #[test]
    fn the_answers_of_all_instances_are_what_one_would_answer() {
        let whole = SummaryBody::new(&snapshot(&[(0, 1, 5), (1, 2, 6), (2, 4, 7)]));
        let merged =
            SummaryBody::merge(vec![answer(1, &[(1, 2, 6)]), answer(2, &[(0, 1, 5), (2, 4, 7)])], &whole_topic(3));
        assert_eq!(serde_json::to_value(&merged).unwrap(), serde_json::to_value(&whole).unwrap());
        let text = serde_json::to_string(&whole).unwrap();
        assert!(text.starts_with("{\"activePatients\":7,\"created\":7,\"updated\":0,"), "the order is kept: {text}");
    }

    #[test]
    fn partitions_that_nobody_answers_for_are_named() {
        let merged = SummaryBody::merge(vec![answer(1, &[(1, 2, 6)])], &whole_topic(3));
        let merged = serde_json::to_value(&merged).unwrap();
        assert_eq!((&merged["partial"], &merged["missingPartitions"]), (&json!(true), &json!([0, 2])));
        assert_eq!(merged["created"], 2);
    }

    #[test]
    fn a_partition_counts_once_while_it_moves_and_an_instance_that_answers_twice_too() {
        let answers = vec![answer(1, &[(0, 1, 5)]), answer(2, &[(0, 3, 7), (1, 10, 1)]), answer(2, &[(1, 20, 2)])];
        let reversed = [&answers[1], &answers[0]].map(Clone::clone).into();
        for answers in [answers, reversed] {
            let merged = SummaryBody::merge(answers, &whole_topic(2));
            assert_eq!((merged.counts.created, merged.missing), (13, MissingBody::default()));
        }
    }

    #[test]
    fn what_is_of_no_single_partition_is_added() {
        let mut of_before = snapshot(&[(0, 1, 5)]);
        of_before.by_partition.of(None).created = 100;
        let of_before = InstanceBody::new(Uuid::from_u128(1), &of_before, |counts| CountsBody::from(counts));
        let merged = SummaryBody::merge(vec![of_before, answer(2, &[(1, 2, 3)])], &whole_topic(2));
        assert_eq!((merged.counts.created, merged.partitions.len()), (103, 2));
    }

    #[test]
    fn series_are_added_by_period() {
        let series = |instance, partitions: &[(i32, i64, i64)]| {
            InstanceBody::new(Uuid::from_u128(instance), &snapshot(partitions), |counts| {
                counts.registrations(crate::counts::Interval::Year, None, None)
            })
        };
        let (merged, missing) = merge_series(vec![series(1, &[(0, 1, 1)]), series(2, &[(2, 2, 1)])], &whole_topic(3));
        assert_eq!(merged, [("2024".to_owned(), 3)].into());
        assert_eq!(missing.missing_partitions, [1].into());
    }
}
