use std::borrow::Cow;

use crate::{Environment, Value};

/// Reads settings one by one, and records every variable and every wrong value.
#[derive(Debug)]
pub struct Reader {
    environment: Environment,
    variables: Vec<Variable>,
    errors: Vec<Invalid>,
    warnings: Vec<Invalid>,
}

impl Reader {
    /// Reads from `environment`.
    pub fn new(environment: Environment) -> Self {
        Self { environment, variables: Vec::new(), errors: Vec::new(), warnings: Vec::new() }
    }

    /// The setting under one of `names`; the first variable that is set counts. `about` is its line in `--help`.
    pub fn variable(&mut self, names: &'static [&'static str], about: &'static str) -> Field<'_> {
        Field { reader: self, names, about, lenient: false, used: true }
    }

    /// The wrong values of [lenient](Field::lenient) settings so far, for the caller to log.
    pub fn take_warnings(&mut self) -> Vec<Invalid> {
        std::mem::take(&mut self.warnings)
    }

    /// The value of a variable that is not a setting of the program but that a library would read.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.environment.get(name)
    }

    /// Adds an error that concerns several settings, such as two that exclude each other.
    pub fn reject(&mut self, name: &'static str, expected: impl Into<String>, why: impl Into<String>) {
        self.errors.push(Invalid { name, expected: expected.into(), why: why.into() });
    }

    /// Returns the settings if every value was valid.
    ///
    /// # Errors
    /// All wrong values, not only the first.
    pub fn finish<S>(self, settings: S) -> Result<(S, Report), Errors> {
        if self.errors.is_empty() { Ok((settings, Report(self.variables))) } else { Err(Errors(self.errors)) }
    }

    /// The variables read so far, valid or not: for the text of `--help`.
    pub fn into_report(self) -> Report {
        Report(self.variables)
    }
}

/// A setting that is about to be read.
#[derive(Debug)]
#[must_use = "a setting is read by `or`, `required` or `optional`"]
pub struct Field<'a> {
    reader: &'a mut Reader,
    names: &'static [&'static str],
    about: &'static str,
    lenient: bool,
    used: bool,
}

impl Field<'_> {
    /// Makes a wrong value a [warning](Reader::take_warnings) instead of an error: the setting counts as not set.
    pub fn lenient(self) -> Self {
        Self { lenient: true, ..self }
    }

    /// Whether the setting applies, given the others. If not, its value is not read; `--help` lists it all the same.
    pub fn used_if(self, used: bool) -> Self {
        Self { used, ..self }
    }

    /// The value, or `default` if it is not set. For a wrong value it returns the default, and [`Reader::finish`]
    /// fails.
    ///
    /// # Panics
    /// If `default` is not a valid value, which is a bug in the program.
    pub fn or<T: Value>(self, default: &'static str) -> T {
        self.read(Absent::Default(default)).unwrap_or_else(|| parse_own(default))
    }

    /// The value, which must be set. Without it returns `example`, which `--help` shows, and [`Reader::finish`] fails.
    ///
    /// # Panics
    /// If `example` is not a valid value, which is a bug in the program.
    pub fn required<T: Value>(self, example: &'static str) -> T {
        self.read(Absent::Error(example)).unwrap_or_else(|| parse_own(example))
    }

    /// The value, if it is set.
    pub fn optional<T: Value>(self) -> Option<T> {
        self.read(Absent::Nothing)
    }

    fn read<T: Value>(self, absent: Absent) -> Option<T> {
        let Self { reader, names, about, lenient, used } = self;
        let value = |&name: &&'static str| Some((name, reader.environment.get(name)?));
        let mut found = names.iter().find_map(value).filter(|_| used);
        let parse = |name: &str, text: &str| {
            // It would be another value than the one that was meant, or the default.
            if reader.environment.is_unicode(name) { T::parse(text) } else { Err("it is not valid UTF-8".to_owned()) }
        };
        if lenient
            && let Some((name, text)) = found
            && let Err(why) = parse(name, text)
        {
            let why = quote::<T>(text, &why);
            reader.warnings.push(Invalid { name, expected: T::EXPECTED.to_owned(), why });
            found = None;
        }
        let shown = match (found, absent) {
            (Some(_), _) if T::SECRET => Some("***".to_owned()),
            (Some((_, text)), _) => Some(text.to_owned()),
            (None, Absent::Default(default)) => Some(default.to_owned()),
            (None, _) => None,
        };
        reader.variables.push(Variable { names, about, expected: T::EXPECTED, absent, shown });
        let (name, parsed) = match found {
            Some((name, text)) => (name, parse(name, text).map_err(|why| quote::<T>(text, &why))),
            None if matches!(absent, Absent::Error(_)) => (names[0], Err("it is not set".to_owned())),
            None => return None,
        };
        parsed.map_err(|why| reader.reject(name, T::EXPECTED, why)).ok()
    }
}

/// What happens to a setting that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absent {
    Default(&'static str),
    Error(&'static str),
    Nothing,
}

/// A variable that the program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    names: &'static [&'static str],
    about: &'static str,
    expected: &'static str,
    absent: Absent,
    shown: Option<String>,
}

impl Variable {
    /// The names under which it can be set, the preferred one first.
    pub fn names(&self) -> &'static [&'static str] {
        self.names
    }
}

/// Every variable that was read, with the value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report(Vec<Variable>);

impl Report {
    /// The variables in the order in which they were read.
    pub fn variables(&self) -> &[Variable] {
        &self.0
    }

    /// The text of `--help` about the environment.
    pub fn help(&self) -> String {
        let mut text = String::new();
        for Variable { names, about, expected, absent, .. } in &self.0 {
            let note = match absent {
                Absent::Default(default) => format!("default {default}"),
                Absent::Error(example) => format!("required, e.g. {example}"),
                Absent::Nothing => "optional".to_owned(),
            };
            text += &format!("  {}\n      {about}: {expected} ({note})\n", names.join(", "));
        }
        text
    }

    /// The text of `--print-config`: `NAME=value` lines that a shell can read back, secrets masked.
    pub fn values(&self) -> String {
        let line = |variable: &Variable| match &variable.shown {
            Some(value) => format!("{}={}\n", variable.names[0], shell_word(value)),
            None => format!("# {} is not set\n", variable.names[0]),
        };
        self.0.iter().map(line).collect()
    }
}

/// The value as a shell reads it in an assignment, where it expands no `*`.
fn shell_word(value: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_./:,@%+=-*".contains(c);
    if value.chars().all(is_plain) { value.into() } else { format!("'{}'", value.replace('\'', r"'\''")).into() }
}

/// One wrong value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: expected {expected}, but {why}")]
pub struct Invalid {
    name: &'static str,
    expected: String,
    why: String,
}

/// All wrong values, one per line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", list(.0))]
pub struct Errors(Vec<Invalid>);

fn list(errors: &[Invalid]) -> String {
    let mut text = match errors.len() {
        1 => "a setting is wrong:".to_owned(),
        n => format!("{n} settings are wrong:"),
    };
    for invalid in errors {
        text += &format!("\n  {invalid}");
    }
    text
}

fn quote<T: Value>(text: &str, why: &str) -> String {
    // A URL in the wrong variable may contain a password.
    let secret = T::SECRET || text.contains('@');
    if secret { format!("in the value (not shown), {why}") } else { format!("in {text:?}, {why}") }
}

fn parse_own<T: Value>(text: &str) -> T {
    T::parse(text).unwrap_or_else(|why| panic!("{text:?}, written in this program, is not {}: {why}", T::EXPECTED))
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, process::Command, time::Duration};

    use super::*;
    use crate::Secret;

    struct Settings {
        port: u16,
        password: Secret<Duration>,
        timeout: Duration,
        note: Option<String>,
    }

    fn read(environment: Environment) -> Result<(Settings, Report), Errors> {
        let mut reader = Reader::new(environment);
        let settings = Settings {
            port: reader.variable(&["SERVER_PORT"], "port").or("4000"),
            password: reader.variable(&["PASSWORD", "SPRING_PASSWORD"], "password").required("1s"),
            timeout: reader.variable(&["TIMEOUT"], "timeout").or("5s"),
            note: reader.variable(&["NOTE"], "note").optional(),
        };
        reader.finish(settings)
    }

    #[test]
    fn values_defaults_and_aliases_are_read() {
        let (settings, _) = read(Environment::empty().with("SERVER_PORT", "1").with("SPRING_PASSWORD", "2s")).unwrap();
        assert_eq!(settings.port, 1);
        assert_eq!(settings.password.expose(), &Duration::from_secs(2));
        assert_eq!(settings.timeout, Duration::from_secs(5));
        assert_eq!(settings.note, None);
    }

    #[test]
    fn an_empty_value_is_not_set() {
        let (settings, _) = read(Environment::empty().with("SERVER_PORT", "").with("PASSWORD", "2s")).unwrap();
        assert_eq!(settings.port, 4000);
    }

    #[test]
    fn reports_every_wrong_value_at_once() {
        let errors = read(Environment::empty().with("SERVER_PORT", "70000").with("TIMEOUT", "soon")).err().unwrap();
        let text = errors.to_string();
        assert!(text.starts_with("3 settings are wrong:"), "{text}");
        assert!(text.contains("SERVER_PORT: expected a port number"), "{text}");
        assert!(text.contains("in \"70000\", number too large"), "{text}");
        assert!(text.contains("PASSWORD: expected a time span"), "{text}");
        assert!(text.contains("but it is not set"), "{text}");
        assert!(text.contains("TIMEOUT"), "{text}");
    }

    #[test]
    fn names_the_variable_that_holds_the_wrong_value() {
        let text = read(Environment::empty().with("SPRING_PASSWORD", "hunter2")).err().unwrap().to_string();
        assert!(text.contains("SPRING_PASSWORD"), "{text}");
    }

    #[test]
    fn a_wrong_value_of_a_lenient_setting_is_a_warning_and_the_default_holds() {
        let environment = Environment::empty().with("PORT", "70000").with("PASSWORD", "hunter2").with("NOTE", "x");
        let mut reader = Reader::new(environment);
        assert_eq!(reader.variable(&["PORT"], "port").lenient().or::<u16>("4000"), 4000);
        let password: Option<Secret<Duration>> = reader.variable(&["PASSWORD"], "password").lenient().optional();
        assert!(password.is_none());
        assert_eq!(reader.variable(&["NOTE"], "note").used_if(true).optional(), Some("x".to_owned()));
        assert_eq!(reader.variable(&["NOTE"], "unused").used_if(false).optional::<u16>(), None);
        let warnings: Vec<_> = reader.take_warnings().iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].starts_with("PORT: expected a port number"), "{warnings:?}");
        assert!(warnings[1].starts_with("PASSWORD: ") && !warnings[1].contains("hunter2"), "{warnings:?}");
        let (_, report) = reader.finish(()).unwrap();
        assert_eq!(report.values(), "PORT=4000\n# PASSWORD is not set\nNOTE=x\n# NOTE is not set\n");
    }

    #[test]
    fn a_value_that_is_not_unicode_is_rejected_by_name_and_never_ignored() {
        let variable = |(name, value): (&str, &[u8])| (name.into(), OsString::from_vec(value.to_vec()));
        let values: [(&str, &[u8]); 3] = [("NOTE", b"caf\xe9"), ("PASSWORD", b"hunter2\xe9"), ("OTHER", b"\xff")];
        let text = read(Environment::of(values.map(variable))).err().unwrap().to_string();
        assert!(text.starts_with("2 settings are wrong:"), "{text}");
        assert!(text.contains("NOTE: expected text, but in \"caf\u{fffd}\", it is not valid UTF-8"), "{text}");
        assert!(text.contains("PASSWORD: ") && !text.contains("hunter2"), "{text}");

        let mut reader = Reader::new(Environment::of([variable(("NOTE", b"\xff"))]));
        assert_eq!(reader.variable(&["NOTE"], "note").lenient().optional::<String>(), None);
        assert_eq!(reader.take_warnings().len(), 1);
        assert!(reader.raw("NOTE").is_some(), "it is set");
    }

    #[test]
    fn a_shell_reads_the_printed_values_back() {
        for value in ["plain/a:b,c=d", "a=b; exit 1", "it's $HOME", "`id`", "~/x", "a\nb", "*", "#", "\\ \"&|<>", "é"]
        {
            let mut reader = Reader::new(Environment::empty().with("NOTE", value));
            let _: Option<String> = reader.variable(&["NOTE"], "note").optional();
            let script = format!("{}\nprintf %s \"$NOTE\"", reader.into_report().values());
            let read = Command::new("sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(String::from_utf8(read.stdout).unwrap(), value);
        }
    }

    #[test]
    fn never_shows_a_secret() {
        let wrong = read(Environment::empty().with("PASSWORD", "hunter2")).err().unwrap();
        assert!(!format!("{wrong} {wrong:?}").contains("hunter2"));
        let (_, report) = read(Environment::empty().with("PASSWORD", "77s")).unwrap();
        assert!(!format!("{} {} {report:?}", report.help(), report.values()).contains("77s"));
        assert!(report.values().contains("PASSWORD=***\n"));
    }

    #[test]
    fn never_shows_a_user_in_a_wrong_address() {
        let environment = Environment::empty().with("BROKERS", "http://user:hunter2@localhost:9092");
        let mut reader = Reader::new(environment);
        let _: crate::HostPorts = reader.variable(&["BROKERS"], "brokers").or("localhost:9092");
        let text = reader.finish(()).err().unwrap().to_string();
        assert!(text.contains("BROKERS: expected host:port") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn help_and_values_list_every_variable() {
        let (_, report) = read(Environment::empty().with("PASSWORD", "1s")).unwrap();
        assert!(report.help().contains("PASSWORD, SPRING_PASSWORD"));
        assert!(report.help().contains("(default 4000)"));
        assert_eq!(report.values(), "SERVER_PORT=4000\nPASSWORD=***\nTIMEOUT=5s\n# NOTE is not set\n");
    }
}
