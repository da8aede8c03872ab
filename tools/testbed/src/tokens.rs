//! An issuer of tokens: signs any header and claims, also those that no real issuer would sign.

use std::{
    fmt,
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use serde_json::{Value as Json, json};

/// A key of 2,048 bits, made for tests: `ring` makes none.
static RSA: LazyLock<RsaKeyPair> =
    LazyLock::new(|| RsaKeyPair::from_pkcs8(include_bytes!("tokens/rsa2048.pk8")).expect("it is an RSA key"));

/// A key that signs tokens.
pub struct SigningKey {
    /// Its `kid`.
    pub id: String,
    pair: Pair,
}

enum Pair {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rs256,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm(), self.id)
    }
}

impl SigningKey {
    /// A new key for ES256.
    ///
    /// # Panics
    /// If the system has no random numbers.
    pub fn es256(id: &str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("random numbers");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random);
        Self { id: id.to_owned(), pair: Pair::Es256(pair.expect("it was generated")) }
    }

    /// A new key for EdDSA.
    ///
    /// # Panics
    /// If the system has no random numbers.
    pub fn ed25519(id: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random numbers");
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("it was generated");
        Self { id: id.to_owned(), pair: Pair::EdDsa(pair) }
    }

    /// The key for RS256, always the same one.
    pub fn rs256(id: &str) -> Self {
        Self { id: id.to_owned(), pair: Pair::Rs256 }
    }

    /// Its `alg`.
    pub fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Es256(_) => "ES256",
            Pair::EdDsa(_) => "EdDSA",
            Pair::Rs256 => "RS256",
        }
    }

    /// The public key as a JWK.
    pub fn jwk(&self) -> Json {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let key = match &self.pair {
            Pair::Es256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)})
            }
            Pair::EdDsa(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref())}),
            Pair::Rs256 => {
                let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(RSA.public());
                json!({"kty": "RSA", "n": encode(&public.n), "e": encode(&public.e)})
            }
        };
        let mut jwk = json!({"kid": self.id, "use": "sig", "alg": self.algorithm()});
        jwk.as_object_mut().expect("an object").extend(key.as_object().expect("an object").clone());
        jwk
    }

    /// A token with the usual header.
    pub fn token(&self, claims: &Json) -> String {
        self.signed(&json!({"alg": self.algorithm(), "typ": "at+jwt", "kid": self.id}), claims)
    }

    /// A token with this header and these claims, whatever they say.
    ///
    /// # Panics
    /// If the system has no random numbers.
    pub fn signed(&self, header: &Json, claims: &Json) -> String {
        let encode = |json: &Json| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", encode(header), encode(claims));
        let (random, bytes) = (SystemRandom::new(), message.as_bytes());
        let signature = match &self.pair {
            Pair::Es256(pair) => pair.sign(&random, bytes).expect("random numbers").as_ref().to_vec(),
            Pair::EdDsa(pair) => pair.sign(bytes).as_ref().to_vec(),
            Pair::Rs256 => {
                let mut signature = vec![0; RSA.public().modulus_len()];
                RSA.sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature).expect("random numbers");
                signature
            }
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A JWK set of these keys.
pub fn jwk_set<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> Json {
    json!({"keys": keys.into_iter().map(SigningKey::jwk).collect::<Vec<_>>()})
}

/// The claims of a valid access token of `subject`, for the next hour.
pub fn claims(issuer: &str, audience: &str, subject: &str, scopes: &str) -> Json {
    let now = now();
    json!({"iss": issuer, "aud": audience, "sub": subject, "iat": now, "exp": now + 3600, "scope": scopes})
}

/// `claims` with others in it; null removes one.
///
/// # Panics
/// If one of them is no object.
#[must_use]
pub fn with(mut claims: Json, others: &Json) -> Json {
    let all = claims.as_object_mut().expect("an object");
    for (name, value) in others.as_object().expect("an object") {
        if value.is_null() {
            all.remove(name);
        } else {
            all.insert(name.clone(), value.clone());
        }
    }
    claims
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The HMAC-SHA256 of a message, as a token has its signature.
pub fn hmac_sha256(secret: &[u8], message: &[u8]) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, message))
}
