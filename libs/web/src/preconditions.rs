//! Preconditions: RFC 9110, section 13. Entity tags are opaque: they are compared as strings and in no other way.

use tide::{Request, Response, StatusCode};

use crate::Problem;

/// The preconditions of a request.
///
/// For GET and HEAD the router evaluates them against the `ETag` of the response. Handlers of other methods evaluate them
/// in the statement that makes the change, so that no other change comes in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// `If-Match`.
    pub if_match: Option<EntityTags>,
    /// `If-None-Match`.
    pub if_none_match: Option<EntityTags>,
}

/// The value of `If-Match` or `If-None-Match`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntityTags {
    /// `*`: any current representation.
    Any,
    /// A list that is not empty.
    List(Vec<EntityTag>),
}

/// An entity tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityTag {
    /// Whether it begins with `W/`.
    pub weak: bool,
    /// The text between the quotes.
    pub opaque: String,
}

impl EntityTags {
    /// The tags for the strong comparison of `If-Match`, without quotes: weak tags never match. None for `*`.
    pub fn strong(&self) -> Option<impl Iterator<Item = &str>> {
        self.list().map(|tags| tags.iter().filter(|tag| !tag.weak).map(|tag| &*tag.opaque))
    }

    /// The tags for the weak comparison of `If-None-Match`, without quotes. None for `*`.
    pub fn weak(&self) -> Option<impl Iterator<Item = &str>> {
        self.list().map(|tags| tags.iter().map(|tag| &*tag.opaque))
    }

    fn list(&self) -> Option<&[EntityTag]> {
        match self {
            Self::Any => None,
            Self::List(tags) => Some(tags),
        }
    }
}

impl Preconditions {
    /// The preconditions of this request. `If-Modified-Since` and `If-Unmodified-Since` are ignored, as the RFC demands
    /// for resources without `Last-Modified`.
    ///
    /// # Errors
    /// 400 if one is malformed: ignoring an `If-Match` could overwrite a change that the client has not seen.
    pub fn of<S>(request: &Request<S>) -> Result<Self, Problem> {
        Ok(Self { if_match: tags(request, "if-match")?, if_none_match: tags(request, "if-none-match")? })
    }

    /// Evaluates them for a GET or HEAD whose response has this entity tag, in the order of section 13.2.2.
    fn evaluate(&self, current: Option<&EntityTag>) -> Evaluation {
        let strong = |tag: &EntityTag| current.is_some_and(|current| !tag.weak && !current.weak && tag == current);
        let weak = |tag: &EntityTag| current.is_some_and(|current| tag.opaque == current.opaque);
        let matches = |tags: &EntityTags, equal: &dyn Fn(&EntityTag) -> bool| match tags {
            EntityTags::Any => true,
            EntityTags::List(tags) => tags.iter().any(equal),
        };
        if self.if_match.as_ref().is_some_and(|tags| !matches(tags, &strong)) {
            return Evaluation::Failed;
        }
        if self.if_none_match.as_ref().is_some_and(|tags| matches(tags, &weak)) {
            return Evaluation::NotModified;
        }
        Evaluation::Proceed
    }
}

enum Evaluation {
    Proceed,
    NotModified,
    Failed,
}

/// Whether a request has preconditions; most have none, which saves parsing.
pub(crate) fn are_in<S>(request: &Request<S>) -> bool {
    request.header("if-match").is_some() || request.header("if-none-match").is_some()
}

/// Applies preconditions to the response of a GET or HEAD. They count only if the response is a success.
pub(crate) fn apply(preconditions: Result<Preconditions, Problem>, response: Response) -> Result<Response, Problem> {
    if !response.status().is_success() {
        return Ok(response);
    }
    let current = response.header("etag").map(|values| values.last().as_str().to_owned());
    let tag = current.as_deref().and_then(parse).and_then(|mut tags| tags.pop());
    match preconditions?.evaluate(tag.as_ref()) {
        Evaluation::Proceed => Ok(response),
        Evaluation::NotModified => {
            let mut unchanged = Response::new(StatusCode::NotModified);
            for name in ["etag", "cache-control", "vary"] {
                if let Some(values) = response.header(name) {
                    unchanged.insert_header(name, values);
                }
            }
            Ok(unchanged)
        }
        Evaluation::Failed => {
            let detail = "The resource is not in the state that If-Match requires.";
            Err(Problem::new(StatusCode::PreconditionFailed, detail).kind("version-mismatch"))
        }
    }
}

fn tags<S>(request: &Request<S>, name: &'static str) -> Result<Option<EntityTags>, Problem> {
    let Some(values) = request.header(name) else { return Ok(None) };
    let list = values.iter().map(|value| value.as_str()).collect::<Vec<_>>().join(",");
    if list.trim_matches([' ', '\t']) == "*" {
        return Ok(Some(EntityTags::Any));
    }
    let malformed = || {
        let detail = format!("The header {name} must be * or a list of entity tags such as \"1\".");
        Problem::bad_request(detail).kind("malformed-precondition")
    };
    parse(&list).map(|tags| Some(EntityTags::List(tags))).ok_or_else(malformed)
}

/// A list of entity tags, each in quotes, perhaps with `W/` before it.
fn parse(mut list: &str) -> Option<Vec<EntityTag>> {
    let mut tags = Vec::new();
    loop {
        list = list.trim_start_matches([' ', '\t', ',']);
        if list.is_empty() {
            return (!tags.is_empty()).then_some(tags);
        }
        let strong = list.strip_prefix("W/");
        let weak = strong.is_some();
        let (opaque, rest) = strong.unwrap_or(list).strip_prefix('"')?.split_once('"')?;
        tags.push(EntityTag { weak, opaque: opaque.to_owned() });
        list = rest.trim_start_matches([' ', '\t']);
        if !list.is_empty() && !list.starts_with(',') {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(weak: bool, opaque: &str) -> EntityTag {
        EntityTag { weak, opaque: opaque.to_owned() }
    }

    #[test]
    fn reads_lists_of_tags() {
        assert_eq!(parse("\"1\""), Some(vec![tag(false, "1")]));
        assert_eq!(parse(" \"1\" , W/\"2,3\",\"\""), Some(vec![tag(false, "1"), tag(true, "2,3"), tag(false, "")]));
        for wrong in ["", " , ", "1", "\"1", "\"1\" \"2\"", "w/\"1\"", "*, \"1\"", "W/ \"1\""] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn if_match_comes_first_and_compares_strongly() {
        let list =
            |text: &str| Some(if text == "*" { EntityTags::Any } else { EntityTags::List(parse(text).unwrap()) });
        let status = |if_match: Option<EntityTags>, if_none_match, current: Option<&str>| {
            let mut response = Response::new(StatusCode::Ok);
            if let Some(current) = current {
                response.insert_header("etag", current);
            }
            let preconditions = Preconditions { if_match, if_none_match };
            apply(Ok(preconditions), response).map_or_else(|problem| problem.status(), |response| response.status())
        };
        let current = Some("\"1\"");
        for (if_match, if_none_match, current, expected) in [
            (list("\"1\""), None, current, 200),
            (list("\"01\""), None, current, 412),
            (list("\"+1\""), None, current, 412),
            (list("W/\"1\""), None, current, 412),
            (list("\"1\""), None, Some("W/\"1\""), 412),
            (list("\"2\", \"1\""), None, current, 200),
            (list("*"), None, current, 200),
            (list("*"), None, None, 200),
            (list("\"1\""), None, None, 412),
            (None, list("\"1\""), current, 304),
            (None, list("W/\"1\""), current, 304),
            (None, list("\"1\""), Some("W/\"1\""), 304),
            (None, list("\"01\""), current, 200),
            (None, list("\"2\", \"1\""), current, 304),
            (None, list("*"), current, 304),
            (None, list("*"), None, 304),
            (None, list("\"1\""), None, 200),
            (list("\"1\""), list("\"1\""), current, 304),
            (list("\"2\""), list("\"1\""), current, 412),
        ] {
            let case = format!("{if_match:?} {if_none_match:?} {current:?}");
            assert_eq!(u16::from(status(if_match, if_none_match, current)), expected, "{case}");
        }
    }

    #[test]
    fn preconditions_count_only_for_successful_responses() {
        let missing = apply(Err(Problem::bad_request("malformed")), Response::new(StatusCode::NotFound));
        assert_eq!(missing.unwrap().status(), StatusCode::NotFound);
    }
}
