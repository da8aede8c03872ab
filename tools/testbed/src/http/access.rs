//! How clients reach a secure system: which authority they trust, and as which user they get tokens.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use config::Secret;
use serde_json::{Value as Json, json};
use smol::lock::Mutex;

use super::Client;
use crate::Error;

/// A token is replaced when it has less time than this left.
const RENEWED_BEFORE: Duration = Duration::from_secs(60);

/// The authority of a secure system, and a user of its auth-service or a token.
#[derive(Clone, Debug)]
pub struct Access {
    tls: tls::Connector,
    login: Option<Arc<Login>>,
    /// One that somebody else has issued.
    token: Option<Secret<String>>,
}

/// A user, and the token that it has.
struct Login {
    auth_service: Client,
    email: String,
    password: Secret<String>,
    /// With its end.
    token: Mutex<Option<(String, SystemTime)>>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.email)
    }
}

impl Access {
    /// Of somebody who has no token, to servers with certificates of this authority.
    ///
    /// # Errors
    /// If the file has no authority.
    pub fn new(authority: &Path) -> Result<Self, Error> {
        let files = tls::ClientSettings { ca: Some(authority.to_owned()), identity: None };
        let tls = web_client::connector("testbed", files).map_err(|error| Error::new(error.to_string()))?;
        Ok(Self { tls, login: None, token: None })
    }

    /// Of a user of the auth-service at this address, who logs in when a token is needed, and again before it expires.
    #[must_use]
    pub fn with_login(self, auth_service: impl fmt::Display, email: &str, password: &str) -> Self {
        let auth_service = Client::new(auth_service).with_access(&Self { login: None, ..self.clone() });
        let (email, password) = (email.to_owned(), Secret::new(password.to_owned()));
        let login = Login { auth_service, email, password, token: Mutex::new(None) };
        Self { login: Some(Arc::new(login)), ..self }
    }

    /// Of somebody who has this token.
    #[must_use]
    pub fn with_token(self, token: String) -> Self {
        Self { token: Some(Secret::new(token)), ..self }
    }

    pub(crate) fn tls(&self) -> &tls::Connector {
        &self.tls
    }

    /// A token: the given one, or one of the user that is valid for a minute at least; none without either.
    ///
    /// # Errors
    /// If auth-service gives none.
    pub async fn token(&self) -> Result<Option<String>, Error> {
        let Some(login) = &self.login else { return Ok(self.token.as_ref().map(|token| token.expose().clone())) };
        let mut token = login.token.lock().await;
        if let Some((token, end)) = &*token
            && SystemTime::now() + RENEWED_BEFORE < *end
        {
            return Ok(Some(token.clone()));
        }
        let body = json!({ "email": login.email, "password": login.password.expose() });
        let answer = Box::pin(login.auth_service.post("/auth/login", &body)).await?;
        let new = answer.json()["token"].as_str().map(str::to_owned);
        let new = new.ok_or_else(|| Error::new(format!("the login of {} got {}", login.email, answer.status)))?;
        let end = end_of(&new).ok_or_else(|| Error::new("auth-service answers with no token"))?;
        *token = Some((new.clone(), end));
        Ok(Some(new))
    }
}

/// `exp` of a token.
fn end_of(token: &str) -> Option<SystemTime> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Json = serde_json::from_slice(&claims).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(claims["exp"].as_u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::{SigningKey, claims, now, with};

    #[test]
    fn the_end_of_a_token_is_read() {
        let claims = with(claims("issuer", "audience", "ann", ""), &json!({"exp": now() + 5}));
        let token = SigningKey::es256("key").token(&claims);
        assert_eq!(end_of(&token), Some(UNIX_EPOCH + Duration::from_secs(claims["exp"].as_u64().unwrap())));
        assert_eq!(end_of("none"), None);
        let claims = with(claims, &json!({"exp": u64::MAX}));
        assert_eq!(end_of(&SigningKey::es256("key").token(&claims)), None, "the clock has no such time");
    }
}
