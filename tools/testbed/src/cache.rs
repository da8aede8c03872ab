//! Downloaded and built parts, kept outside the checkout and shared by all of them.

use std::{
    env,
    path::{self, PathBuf},
};

/// The directory of the cache, as an absolute path: `PATIENT_MANAGEMENT_CACHE`, else below the user's cache directory. The
/// justfile, justw and the scripts in `tests` find it by the same rule.
pub fn directory() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || env::home_dir().filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| "/tmp".into());
    let own = || set("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("patient-management");
    let directory = set("PATIENT_MANAGEMENT_CACHE").unwrap_or_else(own);
    path::absolute(&directory).unwrap_or(directory)
}
