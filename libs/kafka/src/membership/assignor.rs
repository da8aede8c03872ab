//! The assignment of partitions to members: balanced, and each partition to a member that has its state, if it can be.

use std::{cmp::Reverse, collections::BTreeMap};

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
/// The member that is furthest in a partition gets it, unless it has its share already; among equals it is who had it until
/// now. So a partition moves only where the members' shares would differ by more than one. The result is the same for candidates
/// in another order.
pub(super) fn assign(candidates: &[Candidate], partitions: i32) -> Vec<Vec<i32>> {
    let mut assigned = vec![Vec::new(); candidates.len()];
    if candidates.is_empty() {
        return assigned;
    }
    let count = usize::try_from(partitions).unwrap_or_default();
    let mut shares = Shares { least: count / candidates.len(), larger: count % candidates.len() };
    let mut by_name: Vec<usize> = (0..candidates.len()).collect();
    by_name.sort_by(|one, other| candidates[*one].name.cmp(&candidates[*other].name));

    let mut claims = Vec::new();
    for (rank, candidate) in by_name.iter().enumerate() {
        let Candidate { offsets, owned, .. } = &candidates[*candidate];
        for (partition, offset) in offsets.range(0..partitions) {
            claims.push((Reverse(*offset), !owned.contains(partition), rank, *partition));
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
        let returned = [candidate("a", &[(0, 100)], &[]), candidate("b", &[(0, 40)], &[0])];
        assert_eq!(assign(&returned, 1), [vec![0], vec![]], "the other has not caught up");
        let equal = [candidate("a", &[(0, 100)], &[]), candidate("b", &[(0, 100)], &[0])];
        assert_eq!(assign(&equal, 1), [vec![], vec![0]], "it does not move");
    }

    #[test]
    fn partitions_that_the_topic_does_not_have_are_not_assigned() {
        let members = [candidate("a", &[(-1, 5), (0, 5), (9, 5)], &[9])];
        assert_eq!(assign(&members, 2), [vec![0, 1]]);
    }

    proptest! {
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
