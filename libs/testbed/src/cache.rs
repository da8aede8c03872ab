//! Downloaded and built parts, kept outside the checkout and shared by all of them.

use std::{env, path::PathBuf};

/// The directory of the cache: `PATIENT_MANAGEMENT_CACHE`, else below the user's cache directory.
pub fn directory() -> PathBuf {
    if let Some(path) = env::var_os("PATIENT_MANAGEMENT_CACHE").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/tmp".into()));
    let base = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    base.unwrap_or_else(|| home().join(".cache")).join("patient-management")
}
