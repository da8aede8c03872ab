//! The assignment of partitions to members: balanced, and each partition to a member that has its state, if it can be.

use std::{cmp::Reverse, collections::BTreeMap};

/// Records by which a member may be behind the furthest one and keep its partition: those that it has not applied at this moment,
/// which another member with a copy may have. It is the default of `acceptable.recovery.lag` of Kafka Streams.
const ACCEPTABLE_LAG: i64 = 10_000;

/// A member of which the assignor knows the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The same after a restart of a static member.
    pub(super) name: String,
    /// The next offset of each partition of which it has state.
    pub(super) offsets: BTreeMap<i32, i64>,
    /// The partitions that it had until now.
    pub(super) owned: Vec<i32>,
}

/// The partitions of each candidate, in the order of the candidates. The numbers of partitions differ by one at most.
///
/// The member that is furthest in a partition gets it, unless it has its share already; who had it until now keeps it, if it is
/// not further behind than [`ACCEPTABLE_LAG`]. So a partition moves only where the members' shares would differ by more than one. The result is the same for candidates
/// in another order.
pub(super) fn assign(candidates: &[Candidate], partitions: i32) -> Vec<Vec<i32>> {
    let mut assigned = vec![Vec::new(); candidates.len()];
    if candidates.is_empty() {
        return assigned;
    }
    let count = usize::try_from(partitions).unwrap_or_default();
    let mut shares = Shares { least: count / candidates.len(), larger: count % candidates.len() };
    let by_name = by_name(candidates);
    let mut furthest = BTreeMap::<i32, i64>::new();
    for (partition, offset) in candidates.iter().flat_map(|candidate| &candidate.offsets) {
        let furthest = furthest.entry(*partition).or_insert(*offset);
        *furthest = (*furthest).max(*offset);
    }

    let mut claims = Vec::new();
    for (rank, candidate) in by_name.iter().enumerate() {
        let Candidate { offsets, owned, .. } = &candidates[*candidate];
        for (partition, offset) in offsets.range(0..partitions) {
            let furthest = furthest.get(partition).map_or(*offset, |furthest| *furthest);
            let is_close = furthest.saturating_sub(*offset) <= ACCEPTABLE_LAG;
            let weight = if is_close { furthest } else { *offset };
            claims.push((Reverse(weight), !owned.contains(partition), Reverse(*offset), rank, *partition));
        }
    }
    claims.sort_unstable();
    let mut is_assigned = vec![false; count];
    for (.., rank, partition) in claims {
        let (mine, is_assigned) = (&mut assigned[by_name[rank]], &mut is_assigned[partition as usize]);
        if !*is_assigned && shares.take(mine.len()) {
            mine.push(partition);
            *is_assigned = true;
        }
    }
    for (partition, _) in (0..).zip(&is_assigned).filter(|(_, is_assigned)| !**is_assigned) {
        let fewest = by_name.iter().min_by_key(|candidate| assigned[**candidate].len());
        if let Some(fewest) = fewest {
            assigned[*fewest].push(partition);
        }
    }
    for partitions in &mut assigned {
        partitions.sort_unstable();
    }
    assigned
}

/// The partitions of which each candidate keeps a copy, in the order of the candidates: each partition has `count` standbys beside its
/// owner in `assigned`, as far as there are members.
///
/// The members that are furthest in a partition are its standbys. Those of one owner's partitions are spread over the others: when it
/// dies, each of them may get no more than its share.
pub(super) fn assign_standbys(candidates: &[Candidate], assigned: &[Vec<i32>], count: usize) -> Vec<Vec<i32>> {
    let others = candidates.len().saturating_sub(1);
    let count = count.min(others);
    let mut standbys = vec![Vec::new(); candidates.len()];
    if count == 0 {
        return standbys;
    }
    let by_name = by_name(candidates);
    let with_owner = assigned.iter().enumerate();
    let owners: BTreeMap<i32, usize> = with_owner
        .flat_map(|(owner, partitions)| partitions.iter().map(move |partition| (*partition, owner)))
        .collect();
    let mut claims = Vec::new();
    for (rank, candidate) in by_name.iter().enumerate() {
        for (partition, offset) in &candidates[*candidate].offsets {
            if owners.get(partition).is_some_and(|owner| owner != candidate) {
                claims.push((Reverse(*offset), rank, *partition));
            }
        }
    }
    claims.sort_unstable();
    // How many partitions of an owner a member stands by for.
    let mut of_owner = vec![vec![0; candidates.len()]; candidates.len()];
    let mut missing: BTreeMap<i32, usize> = owners.keys().map(|partition| (*partition, count)).collect();
    for (_, rank, partition) in claims {
        let (candidate, owner) = (by_name[rank], owners[&partition]);
        let most = (assigned[owner].len() * count).div_ceil(others);
        if let Some(missing) = missing.get_mut(&partition).filter(|missing| **missing > 0)
            && of_owner[candidate][owner] < most
        {
            standbys[candidate].push(partition);
            of_owner[candidate][owner] += 1;
            *missing -= 1;
        }
    }
    for (partition, missing) in missing {
        let owner = owners[&partition];
        for _ in 0..missing {
            let may_stand_by = |candidate: &&usize| **candidate != owner && !standbys[**candidate].contains(&partition);
            let fewest = |candidate: &&usize| (of_owner[**candidate][owner], standbys[**candidate].len());
            if let Some(candidate) = by_name.iter().filter(may_stand_by).min_by_key(fewest).copied() {
                standbys[candidate].push(partition);
                of_owner[candidate][owner] += 1;
            }
        }
    }
    for partitions in &mut standbys {
        partitions.sort_unstable();
    }
    standbys
}

/// The indexes of the candidates in the order of their names, which does not depend on the order in which they joined.
fn by_name(candidates: &[Candidate]) -> Vec<usize> {
    let mut by_name: Vec<usize> = (0..candidates.len()).collect();
    by_name.sort_by(|one, other| candidates[*one].name.cmp(&candidates[*other].name));
    by_name
}

/// The numbers of partitions that members may have.
struct Shares {
    least: usize,
    /// Members that may have one more.
    larger: usize,
}

impl Shares {
    /// Whether a member that has so many may have one more.
    fn take(&mut self, has: usize) -> bool {
        let is_larger = has == self.least && self.larger > 0;
        self.larger -= usize::from(is_larger);
        has < self.least || is_larger
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn candidate(name: &str, offsets: &[(i32, i64)], owned: &[i32]) -> Candidate {
        Candidate { name: name.to_owned(), offsets: offsets.iter().copied().collect(), owned: owned.to_vec() }
    }

    #[test]
    fn members_without_state_share_the_partitions() {
        let members = ["b", "a", "c"].map(|name| candidate(name, &[], &[]));
        assert_eq!(assign(&members, 7), [vec![1, 4], vec![0, 3, 6], vec![2, 5]]);
        assert_eq!(assign(&members, 0), vec![Vec::<i32>::new(); 3]);
        assert_eq!(assign(&members, 1), [vec![], vec![0], vec![]], "some have none");
        assert!(assign(&[], 3).is_empty());
    }

    #[test]
    fn who_has_the_state_keeps_the_partition() {
        let members = [candidate("a", &[(1, 10), (2, 10)], &[1, 2]), candidate("b", &[(0, 10)], &[0])];
        assert_eq!(assign(&members, 3), [vec![1, 2], vec![0]]);
        let restarted = [candidate("b", &[(0, 10)], &[]), candidate("a", &[(1, 10), (2, 10)], &[])];
        assert_eq!(assign(&restarted, 3), [vec![0], vec![1, 2]], "also after a restart of all");
    }

    #[test]
    fn a_new_member_takes_what_is_least_work_to_read_again() {
        let members = [candidate("a", &[(0, 5), (2, 90)], &[0, 2]), candidate("b", &[(1, 10)], &[1])];
        let joined = [members.to_vec(), vec![candidate("c", &[], &[])]].concat();
        assert_eq!(assign(&joined, 3), [vec![2], vec![1], vec![0]]);
    }

    #[test]
    fn who_is_furthest_gets_a_partition_and_among_equals_who_had_it() {
        let returned = [candidate("a", &[(0, 100_000)], &[]), candidate("b", &[(0, 40)], &[0])];
        assert_eq!(assign(&returned, 1), [vec![0], vec![]], "the other has not caught up");
        let ahead = [candidate("a", &[(0, 100)], &[]), candidate("b", &[(0, 40)], &[0])];
        assert_eq!(assign(&ahead, 1), [vec![], vec![0]], "a copy that is a little ahead takes nothing");
        let thawed = [candidate("a", &[(0, 100)], &[0]), candidate("b", &[(0, 140)], &[0])];
        assert_eq!(assign(&thawed, 1), [vec![], vec![0]], "both had it, and one has gone on");
        let equal = [candidate("a", &[(0, 100)], &[]), candidate("b", &[(0, 100)], &[0])];
        assert_eq!(assign(&equal, 1), [vec![], vec![0]], "it does not move");
    }

    #[test]
    fn partitions_that_the_topic_does_not_have_are_not_assigned() {
        let members = [candidate("a", &[(-1, 5), (0, 5), (9, 5)], &[9])];
        assert_eq!(assign(&members, 2), [vec![0, 1]]);
    }

    #[test]
    fn the_standby_that_is_furthest_becomes_the_owner() {
        let members = [
            candidate("a", &[(0, 900), (1, 700), (2, 900)], &[0, 2]),
            candidate("b", &[(0, 890), (1, 700)], &[1]),
            candidate("c", &[(2, 890)], &[]),
        ];
        assert_eq!(assign(&members[1..], 3), [vec![0, 1], vec![2]], "a has died");
    }

    #[test]
    fn standbys_are_spread_and_stay_where_the_copies_are() {
        let none = ["a", "b", "c"].map(|name| candidate(name, &[], &[]));
        let assigned = assign(&none, 6);
        assert_eq!(assigned, [vec![0, 3], vec![1, 4], vec![2, 5]]);
        let standbys = assign_standbys(&none, &assigned, 1);
        assert_eq!(standbys, [vec![1, 2], vec![0, 5], vec![3, 4]], "of each owner one at each other member");
        let copies = [
            candidate("a", &[(0, 90), (3, 90), (4, 80), (5, 80)], &[0, 3]),
            candidate("b", &[(1, 90), (4, 90), (0, 80), (2, 80), (3, 10)], &[1, 4]),
            candidate("c", &[(2, 90), (5, 90), (1, 80), (3, 80)], &[2, 5]),
        ];
        assert_eq!(assign_standbys(&copies, &assigned, 1), [vec![4, 5], vec![0, 2], vec![1, 3]]);
        assert_eq!(assign_standbys(&none, &assigned, 0), vec![Vec::<i32>::new(); 3]);
        assert_eq!(assign_standbys(&none, &assigned, 9), [vec![1, 2, 4, 5], vec![0, 2, 3, 5], vec![0, 1, 3, 4]]);
        assert_eq!(assign_standbys(&none[..1], &[vec![0, 1]], 1), [Vec::<i32>::new()], "nobody else is there");
        assert!(assign_standbys(&[], &[], 1).is_empty());
    }

    proptest! {
        #[test]
        fn every_partition_has_its_standbys_and_none_is_its_owner(
            partitions in 0..40,
            states in collection::vec(collection::btree_map(-1..45, 0..100_000_i64, 0..40), 1..8),
            count in 0..4_usize,
        ) {
            let named = states.iter().enumerate();
            let candidates: Vec<_> = named
                .map(|(n, offsets)| Candidate { name: n.to_string(), offsets: offsets.clone(), owned: Vec::new() })
                .collect();
            let assigned = assign(&candidates, partitions);
            let standbys = assign_standbys(&candidates, &assigned, count);
            let expected = count.min(candidates.len() - 1);
            for partition in 0..partitions {
                let has = |all: &[Vec<i32>]| -> Vec<usize> {
                    (0..all.len()).filter(|member| all[*member].contains(&partition)).collect()
                };
                let (owners, of_partition) = (has(&assigned), has(&standbys));
                prop_assert_eq!(of_partition.len(), expected);
                prop_assert!(!of_partition.contains(&owners[0]));
            }
            prop_assert_eq!(standbys.concat().len(), expected * partitions as usize, "each once at a member");
        }

        #[test]
        fn every_partition_has_one_member_and_a_second_assignment_moves_none(
            partitions in 0..40,
            states in collection::vec(collection::btree_map(-1..45, 0..100_i64, 0..40), 1..8),
        ) {
            let candidates = |owned: &[Vec<i32>]| -> Vec<Candidate> {
                let named = states.iter().zip(owned).enumerate();
                named.map(|(n, (offsets, owned))| Candidate { name: n.to_string(), offsets: offsets.clone(), owned: owned.clone() })
                    .collect()
            };
            let none = vec![Vec::new(); states.len()];
            let assigned = assign(&candidates(&none), partitions);
            let mut all = assigned.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..partitions).collect::<Vec<_>>());
            let sizes = || assigned.iter().map(Vec::len);
            prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);

            // Everybody has read its partitions to the end since.
            let mut later = candidates(&assigned);
            for (candidate, partitions) in later.iter_mut().zip(&assigned) {
                candidate.offsets.extend(partitions.iter().map(|partition| (*partition, 100)));
            }
            prop_assert_eq!(assign(&later, partitions), assigned.clone());
            later.reverse();
            let mut reversed = assign(&later, partitions);
            reversed.reverse();
            prop_assert_eq!(reversed, assigned, "the order of the members does not matter");
        }
    }
}
