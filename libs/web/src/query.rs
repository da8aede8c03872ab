use std::{ops::RangeInclusive, str::FromStr};

use tide::Request;

use crate::Problem;

/// The query parameters of a request. The last of several with one name counts; unknown ones are ignored.
///
/// Wrong values are collected, so that one response names them all: read every parameter, then call
/// [`finish`](Self::finish).
#[derive(Debug)]
pub struct Query {
    pairs: Vec<(String, String)>,
    errors: Vec<(&'static str, String)>,
}

impl Query {
    /// The parameters of this request.
    pub fn of<S>(request: &Request<S>) -> Self {
        Self::parse(request.url().query().unwrap_or_default())
    }

    fn parse(query: &str) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Self { pairs, errors: Vec::new() }
    }

    /// Whether the parameter is present, even if empty.
    pub fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(key, _)| key == name)
    }

    /// The parameter, unless it is missing or empty. A NUL character, which PostgreSQL cannot store, is an error.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        let value = self.pairs.iter().rev().find(|(key, value)| key == name && !value.is_empty())?.1.clone();
        if value.contains('\0') {
            self.reject(name, "must not contain the NUL character");
            return None;
        }
        Some(value)
    }

    /// The parameter parsed by `parse`, whose error completes the sentence "`name` ...".
    pub fn parsed<T>(&mut self, name: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(name)?;
        parse(&text).map_err(|why| self.reject(name, why)).ok()
    }

    /// The parameter as a whole number within `range`. An empty one is an error.
    pub fn number<N>(&mut self, name: &'static str, range: RangeInclusive<N>) -> Option<N>
    where
        N: FromStr + PartialOrd + std::fmt::Display,
    {
        let (_, text) = self.pairs.iter().rev().find(|(key, _)| key == name)?;
        let number = text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.reject(name, format!("must be a whole number from {} to {}", range.start(), range.end()));
        }
        number
    }

    /// Adds an error of the parameter `name`.
    pub fn reject(&mut self, name: &'static str, why: impl Into<String>) {
        self.errors.push((name, why.into()));
    }

    /// Returns `value` if every parameter was valid.
    ///
    /// # Errors
    /// 400, which names every parameter that was not.
    pub fn finish<T>(self, value: T) -> Result<T, Problem> {
        if self.errors.is_empty() {
            return Ok(value);
        }
        let problem = Problem::bad_request("A query parameter is not valid.").kind("invalid-parameter");
        Err(self.errors.into_iter().fold(problem, |problem, (name, why)| problem.field(name, why)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_and_text() {
        let mut query = Query::parse("limit=5&search=a%20b&limit=7&empty=");
        assert_eq!(query.number("limit", 1..=10), Some(7));
        assert_eq!(query.text("search").as_deref(), Some("a b"));
        assert_eq!(query.text("empty"), None);
        assert!(query.has("empty"));
        assert_eq!(query.finish(()), Ok(()));
    }

    #[test]
    fn one_response_names_every_wrong_parameter() {
        let mut query = Query::parse("limit=0&page=x&size=&search=%00");
        assert_eq!(query.number("limit", 1..=10), None);
        assert_eq!(query.number::<u32>("page", 1..=10), None);
        assert_eq!(query.number::<u32>("size", 1..=10), None);
        assert_eq!(query.text("search"), None);
        let text = format!("{:?}", query.finish(()).unwrap_err());
        for name in ["limit", "page", "size", "search"] {
            assert!(text.contains(name), "{text}");
        }
    }
}
