//! PEM files to what rustls needs of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};

use crate::Error;

/// The bytes of each file, in the order of the paths.
pub(crate) type Contents = Vec<Vec<u8>>;

/// Reads files completely.
pub(crate) fn read(files: &[&Path]) -> Result<Contents, Error> {
    let read = |file: &&Path| fs::read(file).map_err(|source| Error::Unreadable { file: file.to_path_buf(), source });
    files.iter().map(read).collect()
}

/// The certificates of a file, the leaf first.
pub(crate) fn certificates(file: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match parsed {
        Ok(certificates) if certificates.is_empty() => Err(Error::NoCertificate(file.to_owned())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(malformed(file, &error)),
    }
}

/// The first private key of a file, which may hold certificates too.
pub(crate) fn key(file: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => Error::NoKey(file.to_owned()),
        error => malformed(file, &error),
    })
}

/// The certificate authorities of a file. One that rustls cannot use is an error, as a certificate would be.
pub(crate) fn authorities(file: &Path, bytes: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, bytes)? {
        roots.add(certificate).map_err(|error| Error::NoAuthority { file: file.to_owned(), why: error.to_string() })?;
    }
    Ok(roots)
}

/// The error of a certificate and key that do not fit.
pub(crate) fn mismatch(certificate: &Path, key: &Path, error: &rustls::Error) -> Error {
    Error::Mismatch { certificate: certificate.to_owned(), key: key.to_owned(), why: error.to_string() }
}

fn malformed(file: &Path, error: &pem::Error) -> Error {
    // Some of the messages quote the file, which may hold a key.
    let why = match error {
        pem::Error::MissingSectionEnd { .. } => "a section does not end",
        pem::Error::IllegalSectionStart { .. } => "a section begins with a malformed line",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "it is not PEM",
    };
    Error::Malformed { file: PathBuf::from(file), why: why.to_owned() }
}
