//! The data directory of the system: outside the checkout, one for each checkout, and another one beside it for its secure
//! system.

use std::{
    env,
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{self, Path, PathBuf},
};

use anyhow::{Result, anyhow};
use testbed::create_open_directory;

mod entries;

pub(crate) use entries::delete;

/// In the checkout's data directory: the mode of the last `up`.
const MODE_FILE: &str = "mode";
const SECURE: &str = "secure";

/// The mode of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Whoever reaches loopback may do everything; nothing is encrypted.
    Open,
    /// Callers have identities, and every connection between programs has TLS.
    Secure,
}

impl Mode {
    /// The mode of the last `up` in this checkout.
    pub(crate) fn of_checkout() -> Result<Self> {
        let text = fs::read_to_string(of_checkout()?.join(MODE_FILE)).unwrap_or_default();
        Ok(if text.trim() == SECURE { Self::Secure } else { Self::Open })
    }

    /// From here on, commands use the system with this mode.
    pub(crate) fn remember(self) -> Result<()> {
        let file = of_checkout()?.join(MODE_FILE);
        match self {
            Self::Secure => Ok(fs::write(file, format!("{SECURE}\n"))?),
            Self::Open if file.exists() => Ok(fs::remove_file(file)?),
            Self::Open => Ok(()),
        }
    }
}

/// In the checkout's data directory: which command is changing the system.
pub(crate) const LOCK_FILE: &str = "lock";
/// In the data directory: the name of the backend of the last `up`.
pub(crate) const BACKEND_FILE: &str = "backend";

/// Whether the last `up` started containers.
pub(crate) fn runs_in_containers() -> Result<bool> {
    Ok(fs::read_to_string(directory()?.join(BACKEND_FILE)).unwrap_or_default().starts_with("docker"))
}

/// The absolute path of the data directory of the current mode's system, which is created if it does not exist.
pub(crate) fn directory() -> Result<PathBuf> {
    let directory = of_checkout()?;
    match Mode::of_checkout()? {
        Mode::Open => Ok(directory),
        Mode::Secure => created(secure(&directory), chosen().is_none()),
    }
}

/// The directory of the secure system, beside the other one: what was written without identities stays apart.
fn secure(directory: &Path) -> PathBuf {
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push("-secure");
    directory.with_file_name(name)
}

/// The absolute path of this checkout's data directory, which is created if it does not exist. `STACK_HOME` sets another one;
/// a relative path starts at the checkout.
///
/// For root it is not below root's home, which PostgreSQL, as another user, cannot enter.
pub(crate) fn of_checkout() -> Result<PathBuf> {
    let chosen = chosen();
    let is_default = chosen.is_none();
    let directory = match chosen {
        Some(path) => path::absolute(path)?,
        None => base()?.join(checkout_name()?),
    };
    // The path becomes part of settings, URLs and pid files.
    if directory.to_str().is_none_or(|text| text.contains(char::is_control)) {
        return Err(anyhow!("The path of the data directory must be UTF-8 without control characters: {directory:?}"));
    }
    created(directory, is_default)
}

/// What `STACK_HOME` says.
fn chosen() -> Option<OsString> {
    env::var_os("STACK_HOME").filter(|path| !path.is_empty())
}

/// # Errors
/// If it cannot be created, or `STACK_HOME` names a directory with files of others: PostgreSQL would get some of them, and nobody
/// expects them there.
fn created(directory: PathBuf, is_default: bool) -> Result<PathBuf> {
    let claimed = create_open_directory(&directory).and_then(|()| {
        if is_default { entries::claim_default(&directory).map(|()| true) } else { entries::claim(&directory) }
    });
    match claimed {
        Ok(true) => Ok(directory),
        Ok(false) => Err(anyhow!(
            "{} is not empty, and no `just up` has made it. The data need a directory of their own, because `just reset` \
             deletes them: let STACK_HOME name an empty one, or one that does not exist.",
            directory.display()
        )),
        Err(error) => Err(anyhow!("The data directory {} cannot be created: {error}", directory.display())),
    }
}

fn base() -> io::Result<PathBuf> {
    // Only root can create this directory.
    if create_open_directory(Path::new("/var/lib/patient-management")).is_ok() && is_writable() {
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
