//! The data directory of the system: outside the checkout, one for each checkout.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{self, PathBuf},
};

use anyhow::{Result, anyhow};

/// The absolute path of this checkout's data directory, which is created if it does not exist. `STACK_HOME` sets another one;
/// a relative path starts at the checkout.
///
/// For root it is not below root's home, which PostgreSQL, as another user, cannot enter.
pub(crate) fn directory() -> Result<PathBuf> {
    let directory = match env::var_os("STACK_HOME").filter(|path| !path.is_empty()) {
        Some(path) => path::absolute(path)?,
        None => base()?.join(checkout_name()?),
    };
    // The path becomes part of settings, URLs and pid files.
    if directory.to_str().is_none_or(|text| text.contains(char::is_control)) {
        return Err(anyhow!("The path of the data directory must be UTF-8 without control characters: {directory:?}"));
    }
    fs::create_dir_all(&directory)
        .map_err(|error| anyhow!("The data directory {} cannot be created: {error}", directory.display()))?;
    Ok(directory)
}

fn base() -> io::Result<PathBuf> {
    // Only root can create this directory.
    if fs::create_dir_all("/var/lib/patient-management").is_ok() && is_writable() {
        return Ok("/var/lib/patient-management".into());
    }
    let set = |path: PathBuf| Some(path).filter(|path| !path.as_os_str().is_empty());
    let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from).and_then(set);
    let home = || env::home_dir().and_then(set).unwrap_or_else(|| "/tmp".into());
    path::absolute(state.unwrap_or_else(|| home().join(".local/state")).join("patient-management"))
}

fn is_writable() -> bool {
    let probe = PathBuf::from("/var/lib/patient-management/.probe");
    fs::write(&probe, "").is_ok_and(|()| fs::remove_file(&probe).is_ok())
}

/// A name that differs between checkouts; short, because the path of a Unix socket has to be.
fn checkout_name() -> io::Result<String> {
    let checkout = env::current_dir()?.canonicalize()?;
    let mut hasher = DefaultHasher::new();
    checkout.hash(&mut hasher);
    Ok(format!("{:08x}", hasher.finish() as u32))
}
