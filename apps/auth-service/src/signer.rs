//! The key, and the tokens that it signs.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::users::User;

/// What nobody but the owner may do with the file of the key.
const OTHERS: u32 = 0o077;

/// Signs tokens: ES256.
pub struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    /// The thumbprint of the public key (RFC 7638).
    id: String,
    /// The public key, without its id.
    public: Json,
}

impl Signer {
    /// Reads the key, or makes it if the file is missing.
    ///
    /// # Errors
    /// If the file cannot be read or made, is no such key, or can be read by others.
    pub fn open(file: &Path) -> Result<Self, String> {
        let wrong = |why: String| format!("SIGNING_KEY_FILE {}: {why}", file.display());
        let random = SystemRandom::new();
        if !file.exists() {
            make(file, &random).map_err(wrong)?;
        }
        let mode = fs::metadata(file).map_err(|error| wrong(error.to_string()))?.permissions().mode();
        if mode & OTHERS != 0 {
            return Err(wrong(format!("others than its owner may use it (mode {:o})", mode & 0o777)));
        }
        let bytes = fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &bytes, &random);
        let pair = pair.map_err(|_| wrong("it is no private key of P-256 in PKCS #8".to_owned()))?;
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        // The members in this order, without white space.
        let canonical = format!("{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"{x}\",\"y\":\"{y}\"}}");
        let id = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        let public = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y});
        Ok(Self { pair, random, id, public })
    }

    /// The JWK set.
    pub fn jwk_set(&self) -> Json {
        let mut key = self.public.clone();
        key["kid"] = self.id.clone().into();
        key["alg"] = "ES256".into();
        key["use"] = "sig".into();
        json!({ "keys": [key] })
    }

    /// A token for a user.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn token(
        &self,
        user: &User,
        issuer: &str,
        audiences: &[String],
        lifetime: Duration,
    ) -> Result<String, ring::error::Unspecified> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": self.id});
        let claims = json!({
            "iss": issuer,
            "sub": user.subject,
            "aud": audiences,
            "iat": now,
            "exp": now + lifetime.as_secs(),
            "jti": Uuid::now_v7(),
            "client_id": "login",
            "scope": user.scopes.join(" "),
        });
        let encode = |json: &Json| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.pair.sign(&self.random, message.as_bytes())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Makes a key. Of several processes that do so at once, all use that of the first.
fn make(file: &Path, random: &SystemRandom) -> Result<(), String> {
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, random);
    let key = key.map_err(|_| "the system has no random numbers".to_owned())?;
    let unfinished = file.with_extension(format!("{}.new", Uuid::now_v7()));
    let write = || {
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        // Whatever the umask adds or takes.
        new.set_permissions(Permissions::from_mode(0o600))?;
        new.write_all(key.as_ref())?;
        new.sync_all()?;
        let linked = fs::hard_link(&unfinished, file);
        fs::remove_file(&unfinished)?;
        match linked {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            // The key must not be another one after a power cut.
            _ => file
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .map_or(Ok(()), |folder| File::open(folder)?.sync_all()),
        }
    };
    write().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_is_nobody_elses() {
        let scratch = testbed::Scratch::new().unwrap();
        let file = scratch.path().join("key.pk8");
        let opened = Signer::open(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let keys = fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let keys: Vec<_> = keys.filter(|name| name.starts_with("key")).collect();
        assert_eq!(keys, ["key.pk8"], "nothing else is left");
        assert_eq!(Signer::open(&file).unwrap().jwk_set(), opened.jwk_set());
        assert!(opened.jwk_set()["keys"][0].get("d").is_none(), "{}", opened.jwk_set());

        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        assert!(Signer::open(&file).err().unwrap().contains("others than its owner"));
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "no key").unwrap();
        assert!(Signer::open(&file).err().unwrap().contains("PKCS #8"));
    }
}
