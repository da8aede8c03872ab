//! The development authority and its certificates: one for each program.

use std::{
    fs::{self, DirBuilder, Permissions},
    net::Ipv4Addr,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use testbed::{
    certificates::{Authority, Identity, Validity},
    roles,
};

use crate::private_file;

/// The broker, PostgreSQL, the commands of the stack, and the gateway.
pub(super) const BROKER: &str = "kafka";
pub(super) const POSTGRES: &str = "postgres";
pub(super) const STACK: &str = "stack";
pub(super) const GATEWAY: &str = "gateway";
/// Our services, each with a certificate that has its name and those of this machine.
pub(super) const SERVICES: [&str; 4] = ["patient-service", "billing-service", "analytics-service", super::AUTH_SERVICE];

/// The common name of the authority.
const AUTHORITY: &str = "Patient Management development CA";
/// Days for which they are valid, and days before their end in which `up` makes new ones.
const AUTHORITY_DAYS: (u64, u64) = (3650, 365);
const DAYS: (u64, u64) = (90, 30);
/// The names of this machine.
const HERE: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

pub(super) fn directory(home: &Path) -> PathBuf {
    home.join("tls")
}

pub(super) fn authority(directory: &Path) -> PathBuf {
    directory.join("ca.pem")
}

pub(super) fn identity(directory: &Path, name: &str) -> Identity {
    let file = |extension: &str| directory.join(format!("{name}.{extension}"));
    Identity { certificate: file("crt"), key: file("key") }
}

/// The key and the certificate in one file, as Kafka's clients take them.
pub(super) fn keystore(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.keystore.pem"))
}

/// An address of loopback that this system has alone, because PostgreSQL's port is always the same.
pub(super) fn postgres_address(home: &Path) -> Ipv4Addr {
    // FNV-1a: the same in every version of this program.
    let digest = home.as_os_str().as_bytes().iter();
    let digest = digest.fold(0x811c_9dc5_u32, |digest, byte| (digest ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, _] = digest.to_be_bytes();
    Ipv4Addr::new(127, a % 254 + 1, b, c % 254 + 1)
}

/// Makes what is missing, and anew what expires soon; with a new authority everything. Returns whether anything is new.
pub(super) fn renew(directory: &Path) -> Result<bool> {
    DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
    let is_kept = lasts(&authority(directory), AUTHORITY_DAYS.1) && directory.join("ca.key").is_file();
    let mut renewed = !is_kept;
    let authority = if is_kept {
        Authority::open(directory, AUTHORITY)?
    } else {
        Authority::create(directory, AUTHORITY, Validity::Days(AUTHORITY_DAYS.0))?
    };
    let postgres = postgres_address(directory.parent().unwrap_or(directory)).to_string();
    // With which services migrate their databases.
    let owners = super::databases::ALL.map(|(_, service)| roles::owner(service));
    let owners = owners.iter().map(String::as_str);
    for name in SERVICES.into_iter().chain(owners).chain([BROKER, POSTGRES, STACK, GATEWAY]) {
        let Identity { certificate, key } = identity(directory, name);
        if is_kept && lasts(&certificate, DAYS.1) && key.is_file() && keystore(directory, name).is_file() {
            continue;
        }
        // In containers, the databases have names.
        let own = if name == POSTGRES { vec![postgres.as_str(), "patient-db", "billing-db"] } else { vec![name] };
        let names: Vec<_> = HERE.into_iter().chain(own).collect();
        let identity = authority.issue(directory, name, &names, Validity::Days(DAYS.0))?;
        private_file::write(&keystore(directory, name), &identity.keystore()?)?;
        fs::set_permissions(&identity.certificate, Permissions::from_mode(0o600))?;
        renewed = true;
    }
    fs::set_permissions(self::authority(directory), Permissions::from_mode(0o600))?;
    Ok(renewed)
}

/// Whether the certificate in a file is valid for so many days more.
fn lasts(file: &Path, days: u64) -> bool {
    let expires = fs::read(file).ok().and_then(|pem| tls::expires(&pem));
    expires.is_some_and(|expires| SystemTime::now() + Duration::from_secs(days * 86_400) < expires)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_kept_until_they_expire_soon_and_nobody_else_reads_them() {
        let scratch = testbed::Scratch::new().unwrap();
        let directory = directory(scratch.path());
        let read = || -> Vec<(PathBuf, Vec<u8>)> {
            let mut files: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
        };
        assert!(renew(&directory).unwrap());
        let first = read();
        for (file, _) in &first {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        }
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!renew(&directory).unwrap());
        assert_eq!(read(), first, "nothing has changed");

        // One that expires in a week is made anew, the others stay; the authority is the same.
        let authority = Authority::open(&directory, AUTHORITY).unwrap();
        authority.issue(&directory, BROKER, &HERE, Validity::Days(7)).unwrap();
        assert!(renew(&directory).unwrap());
        let changed: Vec<_> = read().into_iter().zip(&first).filter(|(new, old)| new != *old).collect();
        assert_eq!(changed.len(), 3, "certificate, key and keystore");
        let files = tls::ClientSettings {
            ca: Some(self::authority(&directory)),
            identity: Some((identity(&directory, BROKER).certificate, identity(&directory, BROKER).key)),
        };
        tls::Connector::new("tests", files, &[]).unwrap();

        fs::remove_file(directory.join("ca.key")).unwrap();
        assert!(renew(&directory).unwrap());
        let all = read().into_iter().zip(&first).all(|(new, old)| new != *old);
        assert!(all, "with a new authority everything is new");
    }

    #[test]
    fn the_address_of_postgresql_is_one_of_loopback_and_depends_on_the_directory() {
        let [one, other] = ["/a/b-secure", "/a/c-secure"].map(|home| postgres_address(Path::new(home)));
        assert!(one.is_loopback() && one != other && one != Ipv4Addr::LOCALHOST);
    }
}
