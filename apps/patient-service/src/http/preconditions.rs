//! Entity tags: a patient's version, and what clients require of it (RFC 9110, section 13).

use tide::StatusCode;
use web::Problem;

use super::Request;

/// The entity tag of a version.
pub(super) fn entity_tag(version: i64) -> String {
    format!("\"{version}\"")
}

/// The versions that `If-Match` allows; none allows all.
///
/// # Errors
/// 400 if the header is malformed.
pub(super) fn if_match(request: &Request) -> Result<Option<Vec<i64>>, Problem> {
    let Some(tags) = tags(request, "if-match")? else { return Ok(None) };
    // Weak tags never match here, and neither do tags that are none of ours.
    Ok(Some(tags.into_iter().filter(|tag| !tag.weak).filter_map(|tag| tag.value.parse().ok()).collect()))
}

/// Whether `If-None-Match` says that the client has this version.
///
/// # Errors
/// 400 if the header is malformed.
pub(super) fn client_has(request: &Request, version: i64) -> Result<bool, Problem> {
    let header = request.header("if-none-match").map(|values| values.as_str());
    if header == Some("*") {
        return Ok(true);
    }
    let version = version.to_string();
    Ok(tags(request, "if-none-match")?.is_some_and(|tags| tags.iter().any(|tag| tag.value == version)))
}

#[derive(Debug, PartialEq, Eq)]
struct Tag {
    weak: bool,
    value: String,
}

fn tags(request: &Request, name: &'static str) -> Result<Option<Vec<Tag>>, Problem> {
    let Some(values) = request.header(name) else { return Ok(None) };
    let list = values.iter().map(|value| value.as_str()).collect::<Vec<_>>().join(",");
    if list.trim() == "*" {
        return Ok(None);
    }
    let malformed = || {
        let detail = format!("The header {name} must be * or a list of entity tags such as \"1\".");
        Problem::new(StatusCode::BadRequest, detail)
    };
    parse(&list).map(Some).ok_or_else(malformed)
}

/// A list of entity tags, each in quotes, perhaps with `W/` before it.
fn parse(mut list: &str) -> Option<Vec<Tag>> {
    let mut tags = Vec::new();
    loop {
        list = list.trim_start_matches([' ', '\t', ',']);
        if list.is_empty() {
            return (!tags.is_empty()).then_some(tags);
        }
        let strong = list.strip_prefix("W/");
        let weak = strong.is_some();
        let (value, rest) = strong.unwrap_or(list).strip_prefix('"')?.split_once('"')?;
        tags.push(Tag { weak, value: value.to_owned() });
        list = rest.trim_start_matches([' ', '\t']);
        if !list.is_empty() && !list.starts_with(',') {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(weak: bool, value: &str) -> Tag {
        Tag { weak, value: value.to_owned() }
    }

    #[test]
    fn reads_lists_of_tags() {
        assert_eq!(parse("\"1\""), Some(vec![tag(false, "1")]));
        assert_eq!(parse(" \"1\" , W/\"2,3\",\"\""), Some(vec![tag(false, "1"), tag(true, "2,3"), tag(false, "")]));
        for wrong in ["", " , ", "1", "\"1", "\"1\" \"2\"", "w/\"1\"", "*, \"1\""] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
