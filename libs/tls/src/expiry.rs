//! When a certificate expires: the one field of X.509 that neither rustls nor webpki hands out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::NaiveDateTime;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// A time, and its length.
const FORMAT: &str = "%Y%m%d%H%M%S";
const TIME_LENGTH: usize = 14;

/// When the first certificate of a PEM file expires; none if it has no certificate with a date after 1970.
pub fn expires(pem: &[u8]) -> Option<SystemTime> {
    not_after(&CertificateDer::from_pem_slice(pem).ok()?)
}

/// When a certificate expires.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let mut certificate = Der(Der(certificate).expect(SEQUENCE)?);
    let mut fields = Der(certificate.expect(SEQUENCE)?);
    // Before the validity: the version, if it is not 1, the serial number, the algorithm and the issuer.
    let (tag, _) = fields.next()?;
    let before = if tag == VERSION { 3 } else { 2 };
    for _ in 0..before {
        fields.next()?;
    }
    let mut validity = Der(fields.expect(SEQUENCE)?);
    validity.next()?;
    let (tag, text) = validity.next()?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// A sequence of DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The tag and the content of the next value.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, length], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match length {
            short @ 0..0x80 => (usize::from(short), rest),
            // The length follows in so many bytes.
            long => {
                let (bytes, rest) =
                    rest.split_at_checked(usize::from(long & 0x7f)).filter(|(bytes, _)| bytes.len() <= 4)?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn expect(&mut self, expected: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == expected).map(|(_, content)| content)
    }
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, 4.1.2.5).
fn time(tag: u8, text: &str) -> Option<SystemTime> {
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let century = match tag {
        // Two digits of a year from 1950 to 2049.
        UTC_TIME if digits < "50" => "20",
        UTC_TIME => "19",
        GENERALIZED_TIME => "",
        _ => return None,
    };
    let text = format!("{century}{digits}");
    // chrono takes a second of one digit too.
    let time = NaiveDateTime::parse_from_str(&text, FORMAT).ok().filter(|_| text.len() == TIME_LENGTH)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(time.and_utc().timestamp().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(tag: u8, text: &str) -> Option<u64> {
        time(tag, text).map(|time| time.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn both_forms_of_a_time_are_read() {
        assert_eq!(seconds(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(seconds(UTC_TIME, "240229235959Z"), Some(1_709_251_199));
        assert_eq!(seconds(UTC_TIME, "491231000000Z"), seconds(GENERALIZED_TIME, "20491231000000Z"));
        assert_eq!(seconds(GENERALIZED_TIME, "20500301000000Z"), Some(2_529_705_600));
        for wrong in [
            "",
            "Z",
            "24",
            "241301000000Z",
            "240231000000Z",
            "240229000000",
            "2402290000+0Z",
            "24022900000Z",
            "690101000000Z",
        ] {
            assert_eq!(seconds(UTC_TIME, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_end_of_a_real_certificate_is_found_and_damage_is_none() {
        let scratch = testbed::Scratch::new().unwrap();
        let authority = testbed::certificates::Authority::new("tests").unwrap();
        let days = |days: u64| SystemTime::now() + Duration::from_secs(days * 86_400);
        let issue = |validity| authority.issue(scratch.path(), "one", &["one.example"], validity).unwrap().certificate;
        let pem = std::fs::read(issue(testbed::certificates::Validity::Days(30))).unwrap();
        let expires = super::expires(&pem).unwrap();
        assert!(expires > days(29) && expires < days(31), "{expires:?}");
        let old = std::fs::read(issue(testbed::certificates::Validity::Expired)).unwrap();
        assert!(super::expires(&old).unwrap() < SystemTime::now());
        assert_eq!(super::expires(b"no certificate"), None);
        let der = CertificateDer::from_pem_slice(&pem).unwrap();
        for length in 0..120 {
            assert_eq!(not_after(&CertificateDer::from(&der[..length])), None);
        }
    }
}
