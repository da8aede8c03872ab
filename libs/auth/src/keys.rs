//! JWK sets (RFC 7517).

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

use crate::settings::JwtSettings;

/// Time by which clocks may differ, in seconds: a token is admitted for as long after its end.
pub const LEEWAY: u64 = 30;
/// The most keys of a set that are used. Issuers publish two or three.
const MAX_KEYS: usize = 64;
/// The smallest RSA modulus, in bytes: 2,048 bits, which RFC 7518 requires.
const MIN_MODULUS: usize = 256;
/// The largest one: a signature by a larger key costs milliseconds.
const MAX_MODULUS: usize = 512;

/// The keys of an issuer that can be used.
#[derive(Debug)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
    /// Keys of the set that are not used: of another kind or for another purpose, or malformed.
    pub(crate) skipped: usize,
}

/// A key, with what a token that it has signed must fulfil.
#[derive(Debug)]
pub(crate) struct Key {
    id: Option<String>,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
    pub(crate) validation: Validation,
}

impl KeySet {
    /// Reads a JWK set. Keys that cannot be used are skipped, so that one of them does not cost the others.
    ///
    /// # Errors
    /// If it is not a JWK set, or no key of it can be used.
    pub(crate) fn parse(bytes: &[u8], settings: &JwtSettings) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        // serde_json's own message can quote the content.
        let Set { keys: all } = serde_json::from_slice(bytes).map_err(|_| "it is not a JWK set".to_owned())?;
        let keys: Vec<_> = all.iter().filter_map(|key| usable(key, settings)).take(MAX_KEYS).collect();
        let skipped = all.len() - keys.len();
        if keys.is_empty() {
            return Err(format!("none of its {skipped} keys can be used: RS256, ES256 or EdDSA, to verify signatures"));
        }
        Ok(Self { keys, skipped })
    }

    /// The number of usable keys.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key of a token. Without a key id there must be no choice.
    pub(crate) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&Key> {
        let mut keys = self.keys.iter().filter(|key| key.algorithm == algorithm);
        match id {
            Some(id) => keys.find(|key| key.id.as_deref() == Some(id)),
            None => keys.next().filter(|_| keys.next().is_none()),
        }
    }

    /// Whether a key has this id, for whatever algorithm.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// What tells this set from another: ids and key material.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        let parts = |set: &Self| -> Vec<_> {
            set.keys.iter().map(|key| (key.id.clone(), key.algorithm, material(&key.key))).collect()
        };
        parts(self) == parts(other)
    }
}

fn material(key: &DecodingKey) -> Vec<u8> {
    match key.kind() {
        jsonwebtoken::DecodingKeyKind::SecretOrDer(bytes) => bytes.clone(),
        jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, e } => [n.as_slice(), e].concat(),
    }
}

fn usable(value: &Value, settings: &JwtSettings) -> Option<Key> {
    let jwk = Jwk::deserialize(value).ok()?;
    let is_to_verify = jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature)
        && jwk.common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    // Ed25519 is EdDSA's name since RFC 9864, which jsonwebtoken does not know.
    let named = value["alg"].as_str();
    let (algorithm, is_named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, jwk.common.key_algorithm == Some(KeyAlgorithm::RS256)),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, jwk.common.key_algorithm == Some(KeyAlgorithm::ES256))
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, matches!(named, Some("EdDSA" | "Ed25519")))
        }
        _ => return None,
    };
    if !is_to_verify || !(is_named || named.is_none()) {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok().filter(has_valid_size)?;
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.set_issuer(&[&settings.issuer]);
    validation.set_audience(&[&settings.audience]);
    Some(Key { id: jwk.common.key_id, algorithm, key, validation })
}

fn has_valid_size(key: &DecodingKey) -> bool {
    match key.kind() {
        jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => {
            let modulus = n.iter().skip_while(|byte| **byte == 0).count();
            (MIN_MODULUS..=MAX_MODULUS).contains(&modulus)
        }
        // An uncompressed point of P-256, or a point of Ed25519.
        jsonwebtoken::DecodingKeyKind::SecretOrDer(point) => matches!(point.len(), 65 | 32),
    }
}
