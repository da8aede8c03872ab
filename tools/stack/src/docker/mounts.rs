//! The files of this machine that containers see.
//!
//! Containers run as users of their own, and see each file with the mode that it has here. In a checkout that was cloned with
//! umask 077, they can read none.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow};
use yaml_rust2::Yaml;

use crate::secure::quoted;

/// # Errors
/// If there are files that containers cannot read; the error says how to open them.
pub(super) fn check(services: &[Yaml]) -> Result<()> {
    let mut closed: Vec<_> = sources(services).into_iter().filter(|source| !is_open(source)).collect();
    closed.sort_unstable();
    closed.dedup();
    if closed.is_empty() {
        return Ok(());
    }
    let paths: Vec<_> = closed.iter().map(|path| quoted(path)).collect();
    Err(anyhow!("Containers run as users who cannot read these files: chmod go+rX {}", paths.join(" ")))
}

/// What the services mount of this machine.
fn sources(services: &[Yaml]) -> Vec<PathBuf> {
    let mut sources = Vec::new();
    for service in services {
        for volume in service["volumes"].as_vec().into_iter().flatten() {
            let source = match volume.as_str() {
                // The form of Compose v1: source:target:mode. A volume has a name and no path.
                Some(short) => short.split(':').next().filter(|source| source.starts_with('/')),
                None => volume["source"].as_str().filter(|_| volume["type"].as_str() == Some("bind")),
            };
            sources.extend(source.map(PathBuf::from));
        }
    }
    sources
}

/// Whether everybody can read it. What is missing is left to Compose.
fn is_open(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.mode() & 0o004 != 0 && (!found.is_dir() || found.mode() & 0o001 != 0))
        || !path.exists()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use testbed::Scratch;

    use super::*;
    use crate::docker::compose_config::active_services;

    #[test]
    fn files_that_containers_cannot_read_are_named_with_the_command_that_opens_them() {
        let scratch = Scratch::new().unwrap();
        let file = |name: &str, mode| {
            let path = scratch.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (open, closed, other) = (file("open", 0o644), file("closed", 0o600), file("other's", 0o640));
        let folder = scratch.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        let config = format!(
            "services:\n  a:\n    volumes:\n    - type: bind\n      source: {closed}\n      target: /x\n    - type: volume\n      \
             source: data\n  b:\n    volumes:\n    - {open}:/x:ro\n    - {closed}:/x:ro\n    - data:/y\n    - {folder}:/z\n    \
             - /nowhere:/n\n  c:\n    profiles: [tools]\n    volumes:\n    - \"{other}:/x\"\n",
            open = open.display(),
            closed = closed.display(),
            folder = folder.display(),
            other = other.display(),
        );
        let check = |config, profiles| check(&active_services(config, profiles).unwrap());
        let command = |profiles| {
            let error = check(&config, profiles).unwrap_err().to_string();
            error.split_once("chmod go+rX ").unwrap().1.to_owned()
        };
        let (closed, folder) = (closed.display(), folder.display());
        assert_eq!(command(""), format!("{closed} {folder}"));
        let other = other.display().to_string().replace('\'', r"'\''");
        assert_eq!(command("tools"), format!("{closed} {folder} '{other}'"));
        let readable = format!("services: {{a: {{volumes: ['{}:/x', 'data:/y']}}}}", open.display());
        assert!(check(&readable, "").is_ok());
    }
}
