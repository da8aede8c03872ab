//! Where the stack keeps its data: outside the checkout, one folder for each checkout.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{self, PathBuf},
};

use crate::{Failure, Outcome};

/// The folder of this checkout's data, an absolute path, which is made if it is not there. `STACK_HOME` chooses another; a
/// relative one begins at the checkout.
///
/// An unprivileged PostgreSQL has to get into it when we are root, and root's home is closed to it.
pub(crate) fn directory() -> Outcome<PathBuf> {
    let directory = match env::var_os("STACK_HOME").filter(|path| !path.is_empty()) {
        Some(path) => path::absolute(path)?,
        None => base()?.join(checkout_name()?),
    };
    // It becomes part of settings, URLs and lines of pid files.
    if directory.to_str().is_none_or(|text| text.contains(char::is_control)) {
        return Err(Failure(format!(
            "The folder of the data must have a name of printable Unicode, and {directory:?} has not."
        )));
    }
    fs::create_dir_all(&directory).map_err(|error| {
        Failure(format!("The folder of the data, {}, cannot be made: {error}", directory.display()))
    })?;
    Ok(directory)
}

fn base() -> io::Result<PathBuf> {
    // Only root can make a folder here.
    if fs::create_dir_all("/var/lib/patient-management").is_ok() && is_ours() {
        return Ok("/var/lib/patient-management".into());
    }
    let set = |path: PathBuf| Some(path).filter(|path| !path.as_os_str().is_empty());
    let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from).and_then(set);
    let home = || env::home_dir().and_then(set).unwrap_or_else(|| "/tmp".into());
    path::absolute(state.unwrap_or_else(|| home().join(".local/state")).join("patient-management"))
}

fn is_ours() -> bool {
    let probe = PathBuf::from("/var/lib/patient-management/.probe");
    fs::write(&probe, "").is_ok_and(|()| fs::remove_file(&probe).is_ok())
}

/// A name that is short, because the path of a socket must be, and differs between checkouts.
fn checkout_name() -> io::Result<String> {
    let checkout = env::current_dir()?.canonicalize()?;
    let mut hasher = DefaultHasher::new();
    checkout.hash(&mut hasher);
    Ok(format!("{:08x}", hasher.finish() as u32))
}
