//! Entity tags of patients (the version in quotes), and preconditions on them.

use web::{EntityTags, Preconditions, Problem};

use super::Request;
use crate::store::VersionCondition;

/// The entity tag of a version.
pub(super) fn entity_tag(version: i64) -> String {
    format!("\"{version}\"")
}

/// The versions of the patient that a request may change, by `If-Match` and `If-None-Match`.
///
/// # Errors
/// 400 if one is malformed.
pub(super) fn version_condition(request: &Request) -> Result<VersionCondition, Problem> {
    Preconditions::of(request).map(|preconditions| of_preconditions(&preconditions))
}

fn of_preconditions(Preconditions { if_match, if_none_match }: &Preconditions) -> VersionCondition {
    // `If-Match: *` is met by every existing patient, and `If-None-Match: *` by none.
    let mut condition = VersionCondition {
        only: if_match.as_ref().and_then(EntityTags::strong).map(|tags| tags.filter_map(version).collect()),
        not: Vec::new(),
    };
    match if_none_match.as_ref().map(EntityTags::weak) {
        None => {}
        Some(None) => condition.only = Some(Vec::new()),
        Some(Some(tags)) => condition.not = tags.filter_map(version).collect(),
    }
    condition
}

/// The version with this opaque tag. Tags are compared as strings: "+1" is not version 1.
fn version(opaque: &str) -> Option<i64> {
    opaque.parse().ok().filter(|version: &i64| version.to_string() == opaque)
}

#[cfg(test)]
mod tests {
    use web::EntityTag;

    use super::*;

    fn list(tags: &[(bool, &str)]) -> Option<EntityTags> {
        let tags = tags.iter().map(|(weak, opaque)| EntityTag { weak: *weak, opaque: (*opaque).to_owned() });
        Some(EntityTags::List(tags.collect()))
    }

    fn condition(if_match: Option<EntityTags>, if_none_match: Option<EntityTags>) -> (Option<Vec<i64>>, Vec<i64>) {
        let VersionCondition { only, not } = of_preconditions(&Preconditions { if_match, if_none_match });
        (only, not)
    }

    #[test]
    fn tags_are_compared_as_strings() {
        let tags = list(&[(false, "1"), (false, "+1"), (false, "01"), (false, " 1"), (false, "1é"), (true, "2")]);
        assert_eq!(condition(tags.clone(), None), (Some(vec![1]), vec![]), "strongly for If-Match");
        assert_eq!(condition(None, tags), (None, vec![1, 2]), "weakly for If-None-Match");
    }

    #[test]
    fn an_asterisk_matches_every_existing_patient() {
        assert_eq!(condition(None, None), (None, vec![]));
        assert_eq!(condition(Some(EntityTags::Any), None), (None, vec![]));
        assert_eq!(condition(None, Some(EntityTags::Any)), (Some(vec![]), vec![]));
        assert_eq!(condition(list(&[(false, "1")]), Some(EntityTags::Any)), (Some(vec![]), vec![]));
    }
}
