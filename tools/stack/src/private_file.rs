//! Files that only their owner can read, for settings that may be secrets.

use std::path::Path;

use anyhow::Result;
use testbed::certificates::replace;

/// Writes the file atomically.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    Ok(replace(path, text, 0o600)?)
}
