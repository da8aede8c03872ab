//! A certificate authority for tests and for development, with certificates for servers and clients.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};

/// Seconds.
const DAY: u64 = 86_400;

/// A certificate authority. Its key is in memory alone, so that nothing else can be signed by it later, unless it is
/// [made in a directory](Self::create).
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// The files of a certificate and of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// The key, in PEM (PKCS #8), readable for its owner alone.
    pub key: PathBuf,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Now, and for a year at least.
    Now,
    /// From yesterday on, until so many days from now.
    Days(u64),
    /// In the past.
    Expired,
}

impl Authority {
    /// A new authority, which is valid for a year at least.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(name: &str) -> io::Result<Self> {
        Self::of_key(KeyPair::generate().map_err(io::Error::other)?, name, Validity::Now)
    }

    fn of_key(key: KeyPair, name: &str, validity: Validity) -> io::Result<Self> {
        let params = authority_params(name, validity)?;
        let pem = params.self_signed(&key).map_err(io::Error::other)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// A new authority whose certificate and key are kept in a directory, as `ca.pem` and `ca.key`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn create(directory: &Path, name: &str, validity: Validity) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let key_pem = key.serialize_pem();
        let authority = Self::of_key(key, name, validity)?;
        replace(&directory.join("ca.key"), &key_pem, 0o600)?;
        replace(&directory.join("ca.pem"), &authority.pem, 0o644)?;
        Ok(authority)
    }

    /// The authority that [`create`](Self::create) has made in this directory, with the same name.
    ///
    /// # Errors
    /// If a file is missing or malformed.
    pub fn open(directory: &Path, name: &str) -> io::Result<Self> {
        let key = KeyPair::from_pem(&fs::read_to_string(directory.join("ca.key"))?).map_err(io::Error::other)?;
        let pem = fs::read_to_string(directory.join("ca.pem"))?;
        // Of the authority's certificate, only the name is part of those that it issues.
        Ok(Self { issuer: Issuer::new(authority_params(name, Validity::Now)?, key), pem })
    }

    /// The authority's own certificate, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes the authority's own certificate.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        fs::write(file, &self.pem)
    }

    /// Makes a certificate for a server or a client with these names (DNS names, IP addresses and URIs), and writes
    /// `name.crt` and `name.key`. Its common name is `name`, which is the user of a client of PostgreSQL. What is there is
    /// replaced, the key first: whoever reads the two meanwhile finds that they do not fit, and no torn file.
    ///
    /// # Errors
    /// If a name is malformed, or a file cannot be written.
    pub fn issue(&self, directory: &Path, name: &str, names: &[&str], validity: Validity) -> io::Result<Identity> {
        let mut params = params(names, validity)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        let file = |extension: &str| directory.join(format!("{name}.{extension}"));
        let identity = Identity { certificate: file("crt"), key: file("key") };
        replace(&identity.key, &key.serialize_pem(), 0o600)?;
        replace(&identity.certificate, &certificate.pem(), 0o644)?;
        Ok(identity)
    }
}

impl Identity {
    /// The key and the certificate in one text, as a keystore of Kafka in PEM.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn keystore(&self) -> io::Result<String> {
        Ok(fs::read_to_string(&self.key)? + &fs::read_to_string(&self.certificate)?)
    }
}

/// Writes a file beside the old one and renames it: whoever reads it finds the old text or the new one.
///
/// # Errors
/// If it cannot be written.
pub fn replace(file: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = file.with_extension("new");
    // One of an earlier attempt may have another mode.
    let _ = fs::remove_file(&new);
    let mut created = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    created.write_all(text.as_bytes())?;
    fs::rename(new, file)
}

fn authority_params(name: &str, validity: Validity) -> io::Result<CertificateParams> {
    let mut params = params(&[], validity)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(names: &[&str], validity: Validity) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let year = 1970 + (now.as_secs() / 31_556_952) as i32;
    let today = date_time_ymd(1970, 1, 1) + Duration::from_secs(now.as_secs() / DAY * DAY);
    let day = Duration::from_secs(DAY);
    (params.not_before, params.not_after) = match validity {
        Validity::Now => (date_time_ymd(year - 1, 1, 1), date_time_ymd(year + 2, 1, 1)),
        Validity::Days(days) => (today - day, today + day * u32::try_from(days).unwrap_or(u32::MAX)),
        Validity::Expired => (date_time_ymd(year - 3, 1, 1), date_time_ymd(year - 2, 1, 1)),
    };
    for name in names {
        let name = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => {
                let text = (*name).try_into().map_err(io::Error::other)?;
                if name.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) }
            }
        };
        params.subject_alt_names.push(name);
    }
    Ok(params)
}
