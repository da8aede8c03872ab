use std::{io, path::PathBuf};

/// Why files cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has no certificate.
    #[error("{} has no certificate in PEM form", .0.display())]
    NoCertificate(PathBuf),
    /// A file is malformed.
    #[error("{} is malformed: {why}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong, without quoting the file.
        why: String,
    },
    /// A file has no private key.
    #[error("{} has no private key in PEM form: PKCS #8, PKCS #1 or SEC 1, not encrypted", .0.display())]
    NoKey(PathBuf),
    /// The key is not that of the certificate, or of a kind that is not supported.
    #[error("the key of {} does not fit the certificate of {}: {why}", key.display(), certificate.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// rustls's message.
        why: String,
    },
    /// The certificates of a file are no certificate authorities.
    #[error("{} has no certificate authority that can be used: {why}", file.display())]
    NoAuthority {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
}
