//! The cache of downloaded and built programs. It is outside the checkout, and all checkouts share it.

use std::{
    env,
    path::{self, PathBuf},
};

/// The absolute path of the cache: `PATIENT_MANAGEMENT_CACHE`, else below the user's cache directory. The justfile, justw and
/// the scripts in `tests` use the same rule.
pub fn directory() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || env::home_dir().filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| "/tmp".into());
    let own = || set("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("patient-management");
    let directory = set("PATIENT_MANAGEMENT_CACHE").unwrap_or_else(own);
    path::absolute(&directory).unwrap_or(directory)
}
