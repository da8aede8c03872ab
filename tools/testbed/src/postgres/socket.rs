//! The directory of a cluster's Unix socket.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::PORT;
use crate::{
    Error,
    user::{User, create_private_directory},
};

/// The longest path of a Unix socket in bytes.
const SOCKET_PATH_BYTES: usize = 107;

/// The directory of the socket: the cluster's own, unless the socket's path would be too long. Then it is a directory below
/// `/tmp` that only the same owner can enter.
pub(super) fn socket_directory(directory: &Path, user: Option<User>) -> Result<PathBuf, Error> {
    let Some(place) = external_socket_directory(directory) else { return Ok(directory.to_owned()) };
    match fs::DirBuilder::new().mode(0o700).create(&place) {
        Ok(()) => create_private_directory(&place, user)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    // Another user may have created it, to intercept our clients.
    let owner = user.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    let found = fs::symlink_metadata(&place)?;
    if !found.is_dir() || found.uid() != owner || found.mode() & 0o077 != 0 {
        return Err(Error::new(format!("{} belongs to another user, or others can enter it", place.display())));
    }
    Ok(place)
}

/// The directory of the socket if it is outside the cluster's own.
pub(super) fn external_socket_directory(directory: &Path) -> Option<PathBuf> {
    if directory.join(format!(".s.PGSQL.{PORT}")).as_os_str().len() <= SOCKET_PATH_BYTES {
        return None;
    }
    let digest = Sha256::digest(directory.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Some(Path::new("/tmp").join(format!("patient-management-socket-{name}")))
}

/// A path quoted for a list in PostgreSQL's settings.
pub(super) fn quote_list_element(path: &Path) -> String {
    format!("\"{}\"", path.to_str().unwrap_or_default().replace('"', "\"\""))
}
