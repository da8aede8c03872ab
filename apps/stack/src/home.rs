//! Where the stack keeps its data: outside the checkout, one folder for each checkout.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::PathBuf,
};

/// The folder of this checkout's data, which is made if it is not there. `STACK_HOME` chooses another.
///
/// An unprivileged PostgreSQL has to get into it when we are root, and root's home is closed to it.
pub(crate) fn directory() -> io::Result<PathBuf> {
    let directory = match env::var_os("STACK_HOME").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => base().join(checkout_name()?),
    };
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn base() -> PathBuf {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| "/tmp".into());
    // Only root can make a folder here.
    if fs::create_dir_all("/var/lib/patient-management").is_ok() && is_ours() {
        return "/var/lib/patient-management".into();
    }
    let state = env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    state.unwrap_or_else(|| home.join(".local/state")).join("patient-management")
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
