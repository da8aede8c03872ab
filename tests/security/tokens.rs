//! One token after the other on patient-service: which is accepted.

use serde_json::json;
use testbed::tokens::{self, SigningKey, with};

use crate::support::{ISSUER, Issuer, Secured, raw, status};

const PATH: &str = "/patients/01890a5d-ac96-774b-bcce-b302099a8057";
/// The answer to a request that is let through: there is no such patient.
const ACCEPTED: u16 = 404;

#[test]
fn each_token_has_its_answer() {
    runtime::block_on(2, async {
        let (es, ed, rs) = (SigningKey::es256("es"), SigningKey::ed25519("ed"), SigningKey::rs256("rs"));
        let foreign = SigningKey::es256("es");
        let decoy = Issuer::start([&foreign]);
        let service = Secured::with_keys("patient-service", &tokens::jwk_set([&es, &ed, &rs])).await;
        let claims = service.claims("ann", "patients:read");
        let changed = |others| es.token(&with(claims.clone(), &others));
        let headed = |key: &SigningKey, header| key.signed(&header, &claims);
        let valid = es.token(&claims);
        let (message, signature) = valid.rsplit_once('.').unwrap();
        let flipped = format!("{message}.{}{}", if signature.starts_with('A') { 'B' } else { 'A' }, &signature[1..]);
        let other_key =
            headed(&foreign, json!({"alg": "ES256", "kid": "es", "jku": decoy.url("jku"), "x5u": decoy.url("x5u")}));
        let nonce = with(claims.clone(), &json!({"nonce": "n"}));
        let now = tokens::now();
        let checks = [
            ("ES256", valid.clone(), ACCEPTED),
            ("EdDSA", ed.token(&claims), ACCEPTED),
            ("RS256", rs.token(&claims), ACCEPTED),
            ("3 alg none", format!("{}.", headed(&es, json!({"alg": "none"})).rsplit_once('.').unwrap().0), 401),
            ("3 alg None", headed(&es, json!({"alg": "None", "kid": "es"})), 401),
            ("5 flipped signature", flipped, 401),
            ("5 no signature", format!("{message}."), 401),
            ("5 another key", foreign.token(&claims), 401),
            ("6 expired beyond the leeway", changed(json!({"exp": now - 40})), 401),
            ("6 expired within the leeway", changed(json!({"exp": now - 10})), ACCEPTED),
            ("7 nbf in the future", changed(json!({"nbf": now + 300})), 401),
            ("7 nbf within the leeway", changed(json!({"nbf": now + 10})), ACCEPTED),
            ("8 exp missing", changed(json!({"exp": null})), 401),
            ("8 exp is a text", changed(json!({"exp": (now + 300).to_string()})), 401),
            ("9 iss wrong", changed(json!({"iss": "https://other.example"})), 401),
            ("9 iss with a slash more", changed(json!({"iss": format!("{ISSUER}/")})), 401),
            ("9 iss missing", changed(json!({"iss": null})), 401),
            ("10 aud wrong", changed(json!({"aud": "billing-service"})), 401),
            ("10 aud missing", changed(json!({"aud": null})), 401),
            ("10 aud in a list", changed(json!({"aud": ["account", "patient-service"]})), ACCEPTED),
            ("10 aud not in a list", changed(json!({"aud": ["account", "billing-service"]})), 401),
            ("sub missing", changed(json!({"sub": null})), 401),
            ("typ JWT", headed(&es, json!({"alg": "ES256", "kid": "es", "typ": "JWT"})), ACCEPTED),
            ("11 ID token with a nonce", es.signed(&json!({"alg": "ES256", "kid": "es", "typ": "JWT"}), &nonce), 401),
            ("11 ID token with at_hash", changed(json!({"at_hash": "abc"})), 401),
            ("11 ID token of Keycloak", changed(json!({"typ": "ID"})), 401),
            ("12 jku and x5u", other_key, 401),
            ("12 jwk", headed(&foreign, json!({"alg": "ES256", "kid": "es", "jwk": foreign.jwk()})), 401),
            ("13 RS256 with the EC key", headed(&es, json!({"alg": "RS256", "kid": "es"})), 401),
            ("13 ES256 with the RSA key", headed(&rs, json!({"alg": "ES256", "kid": "rs"})), 401),
            ("13 EdDSA with the EC key", headed(&es, json!({"alg": "EdDSA", "kid": "es"})), 401),
            ("13 RS384", headed(&rs, json!({"alg": "RS384", "kid": "rs"})), 401),
            ("14 oversized", changed(json!({"x": "y".repeat(8 * 1024)})), 401),
        ];
        // All of them before it fails: what they have in common says what is wrong.
        let mut wrong = Vec::new();
        for (check, token, expected) in checks {
            let answer = service.get(PATH, &token).await;
            let challenge = answer.header("www-authenticate").unwrap_or_default();
            let is_challenged = challenge.starts_with("Bearer error=\"invalid_token\"");
            let is_problem = expected != 401 || answer.json()["status"] == 401;
            if answer.status != expected || is_challenged != (expected == 401) || !is_problem {
                wrong.push(format!("{check}: {} instead of {expected}", answer.status));
            }
        }
        assert_eq!(decoy.requests(), 0, "12: no key is fetched from where a token says");

        // What no client sends: the header as it is.
        let hs256 = hmac_with_the_public_key(&rs, &claims);
        let long = "a".repeat(36 * 1024);
        for (check, header, expected) in [
            ("1 no token", "", 401),
            ("2 Basic", "Authorization: Basic YTpi\r\n", 401),
            ("2 Bearer without a token", "Authorization: Bearer\r\n", 401),
            ("2 Bearer a b", "Authorization: Bearer a b\r\n", 401),
            ("2 two headers", &format!("Authorization: Bearer {valid}\r\nAuthorization: Bearer {valid}\r\n"), 401),
            ("2 in lower case", &format!("authorization: bearer {valid}\r\n"), ACCEPTED),
            ("4 HS256 with the public key", &format!("Authorization: Bearer {hs256}\r\n"), 401),
            ("14 larger than a head", &format!("Authorization: Bearer {long}\r\n"), 431),
            ("not text", "Authorization: Bearer \u{e9}\r\n", 401),
        ] {
            let head = raw(&service.service.address(), &format!("GET {PATH} HTTP/1.1\r\nHost: a\r\n{header}\r\n"));
            let has_challenge = head.to_lowercase().contains("\r\nwww-authenticate: bearer");
            if status(&head) != expected || has_challenge != (expected == 401) {
                wrong.push(format!("{check}: {} instead of {expected}", status(&head)));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

/// A token whose HMAC has the public key as its secret: what a verifier that lets the token choose takes for valid.
fn hmac_with_the_public_key(key: &SigningKey, claims: &serde_json::Value) -> String {
    let unsigned = key.signed(&json!({"alg": "HS256", "kid": key.id}), claims);
    let message = unsigned.rsplit_once('.').unwrap().0;
    format!("{message}.{}", tokens::hmac_sha256(key.jwk().to_string().as_bytes(), message.as_bytes()))
}
