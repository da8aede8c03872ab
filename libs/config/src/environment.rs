use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
};

/// A set of environment variables: those of the process, or those of a test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    values: BTreeMap<String, String>,
    /// The variables whose value is not valid UTF-8; `values` has what can be shown of it.
    not_unicode: BTreeSet<String>,
}

impl Environment {
    /// The variables of this process.
    pub fn process() -> Self {
        Self::of(std::env::vars_os())
    }

    pub(crate) fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut environment = Self::empty();
        for (name, value) in variables {
            // No setting has a name that is not Unicode.
            let Ok(name) = name.into_string() else { continue };
            let value = value.into_string().unwrap_or_else(|value| {
                environment.not_unicode.insert(name.clone());
                value.to_string_lossy().into_owned()
            });
            environment.values.insert(name, value);
        }
        environment
    }

    /// No variables.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Adds or replaces a variable.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.values.insert(name.into(), value.into());
        self
    }

    /// Whether the value of a variable is valid UTF-8. If not, no setting accepts it.
    pub(crate) fn is_unicode(&self, name: &str) -> bool {
        !self.not_unicode.contains(name)
    }

    /// The value of a variable, with U+FFFD for what is not valid UTF-8. An empty value counts as not set, because compose files pass
    /// unset variables as empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}
