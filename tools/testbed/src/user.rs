//! The unprivileged user that PostgreSQL runs as when we are root: it does not run as root.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

/// A user's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// The user `postgres`, else `nobody`; none if we are not root.
    pub(crate) fn unprivileged() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        ["postgres", "nobody"].iter().find_map(|name| find(&passwd, name))
    }

    /// The outermost ancestor of a path that the user cannot enter; none if the user can enter all that exist.
    pub(crate) fn inaccessible_ancestor(self, path: &Path) -> Option<PathBuf> {
        let mut directories: Vec<_> = path.ancestors().collect();
        directories.reverse();
        directories.into_iter().find(|directory| !self.can_enter(directory)).map(Path::to_owned)
    }

    fn can_enter(self, directory: &Path) -> bool {
        let Ok(found) = fs::metadata(directory) else { return true };
        let class = if found.uid() == self.uid {
            0o100
        } else if found.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        found.mode() & class != 0
    }
}

fn find(passwd: &str, name: &str) -> Option<User> {
    let mut fields = passwd.lines().map(|line| line.split(':')).find(|fields| fields.clone().next() == Some(name))?;
    Some(User { uid: fields.nth(2)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

/// Creates a directory unless it exists, and those above it that are missing. If we are root, every user can enter them, whatever
/// the umask is: PostgreSQL runs as another user. Otherwise it does not, and the umask decides.
///
/// # Errors
/// If one of them cannot be created.
pub fn create_open_directory(path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return fs::create_dir_all(path);
    }
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_open_directory(path.parent().ok_or(error)?)?;
            create_open_directory(path)
        }
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates a directory that only its owner can enter.
pub(crate) fn create_private_directory(path: &Path, owner: Option<User>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    owner.map_or(Ok(()), |user| chown(path, Some(user.uid), Some(user.gid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_ids_of_a_user() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104::/var/lib/postgresql:/bin/bash\n";
        assert_eq!(find(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(find(passwd, "nobody"), None);
    }

    #[test]
    fn an_ancestor_that_the_user_cannot_enter_is_found() {
        let scratch = crate::Scratch::new().unwrap();
        let (closed, inner) = (scratch.path().join("closed"), scratch.path().join("closed/inner"));
        create_private_directory(&closed, None).unwrap();
        fs::create_dir(&inner).unwrap();
        let stranger = User { uid: 4_000_000, gid: 4_000_000 };
        assert_eq!(stranger.inaccessible_ancestor(&inner), Some(closed));
        assert_eq!(stranger.inaccessible_ancestor(scratch.path()), None);
    }
}
