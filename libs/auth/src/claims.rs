//! What a token says, besides what `jsonwebtoken` checks.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::Identity;

/// The claims of a token.
pub(crate) type Claims = Map<String, Value>;

/// The largest subject, in bytes. OpenID Connect allows 255.
const MAX_SUBJECT: usize = 255;

/// The identity in the claims of an access token.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn identity(claims: &Claims, header_type: Option<&str>, audience: &str) -> Result<Identity, &'static str> {
    check_type(claims, header_type)?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    // A list of issuers is nothing that a token may have.
    let issuer = text("iss").ok_or("iss is not a text")?;
    let subject = text("sub").filter(|subject| subject.len() <= MAX_SUBJECT).ok_or("sub is not valid")?;
    let expires = claims.get("exp").and_then(seconds).ok_or("exp is not a time")?;
    Ok(Identity {
        issuer: issuer.into(),
        subject: subject.into(),
        client: text("azp").or_else(|| text("client_id")).map(Into::into),
        scopes: scopes(claims, audience),
        expires,
    })
}

/// Refuses what the issuer has signed for another purpose: ID tokens, refresh tokens, logout tokens. A client that holds
/// an ID token was told who somebody is, and got no permission by it.
fn check_type(claims: &Claims, header_type: Option<&str>) -> Result<(), &'static str> {
    let is = |text: &str, kinds: &[&str]| kinds.iter().any(|kind| text.eq_ignore_ascii_case(kind));
    // RFC 9068, section 4. Keycloak and others leave the header at JWT and say it in a claim.
    const ACCESS: [&str; 2] = ["at+jwt", "application/at+jwt"];
    let has_access_header = header_type.is_some_and(|header_type| is(header_type, &ACCESS));
    if !has_access_header && header_type.is_some_and(|header_type| !is(header_type, &["JWT"])) {
        return Err("it is of another type than an access token");
    }
    let claimed = claims.get("typ").or_else(|| claims.get("token_use")).map(|kind| kind.as_str().unwrap_or_default());
    let has_access_claim = claimed.is_some_and(|claimed| is(claimed, &["Bearer", "access", "at+jwt", "DPoP"]));
    if claimed.is_some() && !has_access_claim {
        return Err("it is of another type than an access token");
    }
    // Claims of ID tokens alone (OpenID Connect Core, sections 2 and 3.3.2.11), and of logout tokens. Some issuers
    // put the nonce into access tokens too, and say then that they are.
    let is_id_token = ["at_hash", "c_hash", "s_hash", "events"].iter().any(|name| claims.contains_key(*name))
        || claims.contains_key("nonce") && !(has_access_header || has_access_claim);
    if is_id_token { Err("it is an ID token and not an access token") } else { Ok(()) }
}

/// Names of scopes and roles: `scope` (RFC 9068), `scp` and `roles` (Entra), `realm_access` and this service's
/// `resource_access` (Keycloak). A role grants the scope of the same name.
fn scopes(claims: &Claims, audience: &str) -> BTreeSet<Box<str>> {
    let roles = |access: Option<&Value>| access.and_then(|access| access.get("roles")).cloned();
    let own = claims.get("resource_access").and_then(|access| access.get(audience));
    let lists = [
        claims.get("scope").cloned(),
        claims.get("scp").cloned(),
        claims.get("roles").cloned(),
        roles(claims.get("realm_access")),
        roles(own),
    ];
    let mut scopes = BTreeSet::new();
    for list in lists.into_iter().flatten() {
        match list {
            Value::String(names) => scopes.extend(names.split_ascii_whitespace().map(Into::into)),
            Value::Array(names) => scopes.extend(names.iter().filter_map(Value::as_str).map(Into::into)),
            _ => {}
        }
    }
    scopes
}

/// A NumericDate, which may have a fraction, as `jsonwebtoken` reads it.
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| seconds.round() as u64))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(claims: Value) -> Claims {
        let mut all = json!({"iss": "https://issuer", "sub": "ann", "exp": 1_900_000_000});
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        all.as_object().unwrap().clone()
    }

    #[test]
    fn access_tokens_are_told_from_tokens_for_other_purposes() {
        let read = |claims, header| identity(&with(claims), header, "patient-service").map(|_| ());
        for (claims, header) in [
            (json!({}), None),
            (json!({}), Some("JWT")),
            (json!({"nonce": "n"}), Some("at+jwt")),
            (json!({"nonce": "n", "typ": "Bearer"}), Some("JWT")),
            (json!({"token_use": "access"}), None),
            (json!({"auth_time": 1}), Some("application/AT+JWT")),
        ] {
            assert_eq!(read(claims.clone(), header), Ok(()), "{claims} {header:?}");
        }
        for (claims, header) in [
            (json!({"nonce": "n"}), Some("JWT")),
            (json!({"at_hash": "h"}), Some("JWT")),
            (json!({"at_hash": "h"}), Some("at+jwt")),
            (json!({"typ": "ID"}), Some("JWT")),
            (json!({"typ": "Refresh"}), Some("JWT")),
            (json!({"typ": 7}), Some("JWT")),
            (json!({"token_use": "id"}), None),
            (json!({"events": {}}), Some("JWT")),
            (json!({}), Some("logout+jwt")),
            (json!({}), Some("id+jwt")),
        ] {
            assert!(read(claims.clone(), header).is_err(), "{claims} {header:?}");
        }
    }

    #[test]
    fn scopes_come_from_each_form_that_issuers_use_and_of_this_service_alone() {
        let claims = with(json!({
            "scope": "openid patients:read",
            "scp": ["patients:write"],
            "roles": ["analytics:read", 7],
            "realm_access": {"roles": ["patients:erase"]},
            "resource_access": {"patient-service": {"roles": ["billing:read"]}, "other": {"roles": ["billing:write"]}}
        }));
        let scopes = identity(&claims, None, "patient-service").unwrap().scopes;
        let expected =
            ["analytics:read", "billing:read", "openid", "patients:erase", "patients:read", "patients:write"];
        assert_eq!(scopes.iter().map(|scope| &**scope).collect::<Vec<_>>(), expected);
        let odd = with(json!({"scope": 7, "roles": {"a": 1}, "realm_access": "x", "resource_access": []}));
        assert!(identity(&odd, None, "patient-service").unwrap().scopes.is_empty());
    }

    #[test]
    fn a_token_needs_a_subject_and_an_issuer() {
        for claims in [json!({"sub": ""}), json!({"sub": 7}), json!({"sub": "x".repeat(256)}), json!({"iss": ["a"]})] {
            assert!(identity(&with(claims.clone()), None, "a").is_err(), "{claims}");
        }
    }
}
