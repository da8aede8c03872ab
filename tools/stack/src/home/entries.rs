//! Whose a directory is, and what `reset` deletes of it: `STACK_HOME` may name any directory, the default one is ours.

use std::{fs, io, path::Path};

use super::{BACKEND_FILE, LOCK_FILE, MODE_FILE, Mode, SECURE};

/// In a directory that `up` made, or found empty.
const MARKER_FILE: &str = "patient-management-data";
const MARKER_TEXT: &str = "The data of `just up`, which `just reset` deletes.\n";

/// What has a log, a pid file or a record of its start.
const COMPONENTS: [&str; 9] = [
    "patient-service",
    "billing-service",
    "analytics-service",
    "console",
    "auth-service",
    "gateway",
    "agent",
    "build",
    "docker",
];
const EXTENSIONS: [&str; 5] = ["log", "log.1", "pid", "started-as", "new"];
/// The other files and directories. `.new` is a file that is about to replace another one.
const ENTRIES: [&str; 16] = [
    "postgres",
    "broker",
    "analytics.before",
    "settings.json",
    "settings.new",
    "service-settings.json",
    "service-settings.new",
    "docker-compose.settings.json",
    "docker-compose.settings.new",
    "agent-token",
    "agent-token.new",
    "agreed-databases",
    "agreed-databases.new",
    LOCK_FILE,
    MODE_FILE,
    BACKEND_FILE,
];
/// The prefix of the files of analytics' state.
const STATE: &str = "analytics.sqlite";
/// What a secure system has besides.
const SECURE_ENTRIES: [&str; 4] = ["tls", "users", "containers", "gateway"];
/// The prefix of the key of tokens.
const SIGNING_KEY: &str = "signing-key.";

/// Marks an empty directory as ours. Returns false if it has anything in it, and no `up` made it.
pub(super) fn claim(directory: &Path) -> io::Result<bool> {
    if is_ours(directory) {
        return Ok(true);
    }
    if fs::read_dir(directory)?.next().is_some() {
        // Another command may have marked it meanwhile.
        return Ok(is_ours(directory));
    }
    mark(directory)?;
    Ok(true)
}

/// Marks the default directory, whatever is in it: an `up` of an earlier version that failed early has left no more than a log.
pub(super) fn claim_default(directory: &Path) -> io::Result<()> {
    if is_ours(directory) { Ok(()) } else { mark(directory) }
}

fn is_ours(directory: &Path) -> bool {
    directory.join(MARKER_FILE).is_file() || is_of_earlier_version(directory)
}

fn mark(directory: &Path) -> io::Result<()> {
    fs::write(directory.join(MARKER_FILE), MARKER_TEXT)
}

/// Whether an `up` that wrote no marker has used it.
fn is_of_earlier_version(directory: &Path) -> bool {
    let text = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    matches!(text(BACKEND_FILE).trim(), "native" | "docker" | "docker-scaled") || text(MODE_FILE).trim() == SECURE
}

fn is_made_by_up(name: &str, mode: Mode) -> bool {
    let of_component = name
        .split_once('.')
        .is_some_and(|(component, extension)| COMPONENTS.contains(&component) && EXTENSIONS.contains(&extension));
    of_component
        || name.starts_with(STATE)
        || ENTRIES.contains(&name)
        || mode == Mode::Secure && (SECURE_ENTRIES.contains(&name) || name.starts_with(SIGNING_KEY))
}

/// Deletes what `up` made in the directory of a system with this mode, and the directory if nothing else is in it. Returns the
/// names of what is left.
pub(crate) fn delete(directory: &Path, mode: Mode) -> io::Result<Vec<String>> {
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_made_by_up(&name, mode) {
            ours.push((name, entry));
        } else if name != MARKER_FILE {
            others.push(name);
        }
    }
    // Last, so that the directory is known as ours if this is interrupted.
    ours.sort_by_key(|(name, _)| [MODE_FILE, BACKEND_FILE].contains(&name.as_str()));
    for (_, entry) in ours {
        let deleted =
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        deleted.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    }
    if others.is_empty() {
        // There is none in a directory of an earlier version.
        let _ = fs::remove_file(directory.join(MARKER_FILE));
        // A mount point, or the target of a symbolic link, stays as an empty directory.
        let _ = fs::remove_dir(directory);
    }
    others.sort();
    Ok(others)
}

#[cfg(test)]
mod tests {
    use testbed::Scratch;

    use super::{super::created, *};

    #[test]
    fn only_an_empty_directory_or_one_of_ours_is_used() {
        let scratch = Scratch::new().unwrap();
        let directory = |name: &str, file: Option<(&str, &str)>| {
            let directory = scratch.path().join(name);
            fs::create_dir(&directory).unwrap();
            if let Some((file, text)) = file {
                fs::write(directory.join(file), text).unwrap();
            }
            directory
        };
        let empty = directory("empty", None);
        assert!(claim(&empty).unwrap());
        fs::write(empty.join("mine"), "").unwrap();
        assert!(claim(&empty).unwrap(), "it was empty");
        for (file, text, expected) in [
            ("backend", "native\n", true),
            ("backend", "docker-scaled\n", true),
            ("mode", "secure\n", true),
            ("backend", "the backend of my web site\n", false),
            ("postgres", "", false),
            (".bashrc", "", false),
        ] {
            let directory = directory(&format!("{file} {}", text.trim()), Some((file, text)));
            assert_eq!(claim(&directory).unwrap(), expected, "{file} {text}");
            assert!(!directory.join(MARKER_FILE).exists());
        }
    }

    #[test]
    fn the_default_directory_is_used_whatever_an_earlier_up_has_left_in_it() {
        let scratch = Scratch::new().unwrap();
        let home = scratch.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(home.join("docker.log"), "a build that failed").unwrap();
        assert!(created(home.clone(), false).is_err());
        created(home.clone(), true).unwrap();
        assert!(delete(&home, Mode::Open).unwrap().is_empty() && !home.exists());
    }

    #[test]
    fn what_up_has_not_made_is_not_deleted() {
        let scratch = Scratch::new().unwrap();
        let home = scratch.path().join("home");
        let fill = |names: &[&str]| {
            for name in names {
                fs::create_dir_all(home.join(name).parent().unwrap()).unwrap();
                fs::write(home.join(name), "").unwrap();
            }
        };
        let own = [
            "postgres/data/PG_VERSION",
            "broker/data/x",
            "patient-service.log",
            "billing-service.log.1",
            "console.pid",
            "analytics-service.started-as",
            "analytics.sqlite",
            "analytics.sqlite-wal",
            "analytics.sqlite.before",
            "settings.json",
            "backend",
        ];
        fill(&own);
        assert!(claim(&home).is_ok_and(|ours| !ours), "another text in its backend");
        fs::write(home.join("backend"), "native\n").unwrap();
        assert!(claim(&home).unwrap());
        let others = ["src/main.rs", "users/me", "notes.log", "tls/key.pem", ".git/config"];
        fill(&others);
        let left = delete(&home, Mode::Open).unwrap();
        assert_eq!(left, [".git", "notes.log", "src", "tls", "users"]);
        assert!(others.iter().all(|name| home.join(name).is_file()));
        assert!(own.iter().all(|name| !home.join(name).exists()));
        assert!(!claim(&home).unwrap(), "it never was a directory of its own");

        let own = scratch.path().join("own");
        fs::create_dir(&own).unwrap();
        assert!(claim(&own).unwrap());
        for name in ["tls", "users", "containers", "gateway"] {
            fs::create_dir(own.join(name)).unwrap();
        }
        fs::write(own.join("notes.txt"), "").unwrap();
        assert_eq!(delete(&own, Mode::Secure).unwrap(), ["notes.txt"]);
        assert!(claim(&own).unwrap(), "it can be used again");
        fs::remove_file(own.join("notes.txt")).unwrap();
        assert!(delete(&own, Mode::Secure).unwrap().is_empty() && !own.exists());
    }
}
