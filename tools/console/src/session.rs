//! Who looks, in a secure system. A person logs in with auth-service and gets a session; what the person asks for is done with the
//! person's token. What the console reads by itself is read as a user of its own.
//!
//! A session is a cookie that no script can read (`HttpOnly`) and no other site can have sent (`SameSite=Strict`). It ends with the
//! token, and with the console.

use std::{
    collections::HashMap,
    fs,
    io::Read as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use config::{HostPort, HostPorts, Secret};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tide::{Request, StatusCode, http::Method};
use web::Problem;

use crate::{
    address::HostAddress,
    client::{self, RequestError, ServiceRequest, ServiceResponse},
    guard::single_header,
};

/// The name of the cookie.
const COOKIE: &str = "session";
/// Sessions at once; the one that ends first goes first.
const MAX_SESSIONS: usize = 64;
/// The console's own token is replaced when it has less time than this left.
const RENEWED_BEFORE: Duration = Duration::from_secs(60);
/// Time for a login, and bytes of its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 64 * 1024;
/// What a person needs to break parts and to send dead letters again: whoever may write could do as much harm.
const LAB_SCOPE: &str = "patients:write";
/// `/api/` paths that need no session.
const OPEN: [&str; 2] = ["/api/info", "/api/session"];

/// The settings of a secure system.
#[derive(Clone, Debug)]
pub struct Secure {
    /// PEM file with the authorities of the services.
    pub ca: PathBuf,
    /// Where people log in.
    pub auth_service: HostPort,
    /// JSON file with the email and the password of the console's own user.
    pub user: PathBuf,
    /// Where the services have their metrics and health: patient-, billing- and analytics-service.
    pub operations: [HostPorts; 3],
}

/// The sessions, and the console's own identity. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Secure,
    tls: tls::Connector,
    own: Mutex<Option<Session>>,
    sessions: Mutex<HashMap<String, Session>>,
}

/// What a login gave.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) email: String,
    token: Secret<String>,
    scopes: Vec<String>,
    pub(crate) end: SystemTime,
}

/// Email and password, as auth-service takes them.
#[derive(Deserialize)]
struct User {
    email: String,
    password: String,
}

impl Session {
    /// What the header `Authorization` says.
    pub(crate) fn authorization(&self) -> String {
        format!("Bearer {}", self.token.expose())
    }

    /// Of an answer of auth-service. The token came from there over TLS, so that its signature is not looked at.
    fn of_answer(email: String, answer: &ServiceResponse) -> Option<Self> {
        let token = answer.json()["token"].as_str()?.to_owned();
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        let claims: Json = serde_json::from_slice(&claims).ok()?;
        let scopes = claims["scope"].as_str()?.split(' ').map(str::to_owned).collect();
        let end = UNIX_EPOCH.checked_add(Duration::from_secs(claims["exp"].as_u64()?))?;
        Some(Self { email, token: Secret::new(token), scopes, end })
    }
}

impl Identity {
    /// # Errors
    /// If the file of the authorities is not valid.
    pub(crate) fn new(settings: Secure) -> Result<Self, tls::Error> {
        let files = tls::ClientSettings { ca: Some(settings.ca.clone()), identity: None };
        let tls = tls::Connector::new("services", files, &["http/1.1"])?;
        let inner = Inner { settings, tls, own: Mutex::default(), sessions: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn tls(&self) -> &tls::Connector {
        &self.inner.tls
    }

    pub(crate) fn operations(&self) -> &[HostPorts; 3] {
        &self.inner.settings.operations
    }

    /// The session of a request.
    pub(crate) fn session<S>(&self, request: &Request<S>) -> Option<Session> {
        let id = cookie(single_header(request, "cookie")?)?;
        let found = self.sessions().get(id).cloned();
        found.filter(|session| SystemTime::now() < session.end)
    }

    /// Lets a request through that needs no session, or has one that may do it.
    ///
    /// # Errors
    /// 401 without a session, 403 if its token grants too little.
    pub(crate) fn check<S>(&self, request: &Request<S>) -> Result<(), Problem> {
        let path = request.url().path();
        if !path.starts_with("/api/") || OPEN.contains(&path) {
            return Ok(());
        }
        let Some(session) = self.session(request) else {
            let problem = Problem::new(StatusCode::Unauthorized, "Log in first: /login.");
            return Err(problem.kind("login-required"));
        };
        let is_read = matches!(request.method(), Method::Get | Method::Head);
        let of_lab = path.starts_with("/api/lab") || path.starts_with("/api/dead-letters");
        if of_lab && !is_read && !session.scopes.iter().any(|scope| scope == LAB_SCOPE) {
            let detail = format!("Your token does not grant the scope {LAB_SCOPE}.");
            return Err(Problem::new(StatusCode::Forbidden, detail).kind("insufficient-scope"));
        }
        Ok(())
    }

    /// Logs a person in. Returns the cookie, or what auth-service answers instead of a token.
    ///
    /// # Errors
    /// If auth-service does not answer.
    pub(crate) async fn log_in(&self, body: Vec<u8>) -> Result<Result<String, ServiceResponse>, RequestError> {
        let email = serde_json::from_slice::<User>(&body).map(|user| user.email).unwrap_or_default();
        let answer = self.ask(body).await?;
        let Some(session) = Session::of_answer(email, &answer).filter(|_| answer.status == 200) else {
            return Ok(Err(answer));
        };
        let id = random().map_err(|error| RequestError::new(error.to_string()))?;
        let seconds = session.end.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
        let mut sessions = self.sessions();
        sessions.retain(|_, session| SystemTime::now() < session.end);
        while sessions.len() >= MAX_SESSIONS {
            let first = sessions.iter().min_by_key(|(_, session)| session.end).map(|(id, _)| id.clone());
            sessions.remove(&first.unwrap_or_default());
        }
        sessions.insert(id.clone(), session);
        Ok(Ok(format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}")))
    }

    /// Ends the session of a request. Returns what makes the browser forget the cookie.
    pub(crate) fn log_out<S>(&self, request: &Request<S>) -> String {
        if let Some(id) = single_header(request, "cookie").and_then(cookie) {
            self.sessions().remove(id);
        }
        format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0")
    }

    /// The console's own token.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) async fn own(&self) -> Result<Session, RequestError> {
        let current = self.inner.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(session) = current.filter(|session| SystemTime::now() + RENEWED_BEFORE < session.end) {
            return Ok(session);
        }
        let failed = |why: String| RequestError::new(format!("the console's own user: {why}"));
        let file = self.inner.settings.user.clone();
        let text = smol::unblock(move || fs::read_to_string(file)).await.map_err(|error| failed(error.to_string()))?;
        let user: User = serde_json::from_str(&text).map_err(|_| failed("its file is malformed".to_owned()))?;
        let body = json!({ "email": user.email, "password": user.password }).to_string();
        let answer = self.ask(body.into_bytes()).await?;
        let session = Session::of_answer(user.email, &answer).filter(|_| answer.status == 200);
        let session = session.ok_or_else(|| failed(format!("auth-service answered {}", answer.status)))?;
        *self.inner.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
        Ok(session)
    }

    async fn ask(&self, body: Vec<u8>) -> Result<ServiceResponse, RequestError> {
        let host = HostAddress(self.inner.settings.auth_service.clone());
        let found = host.resolve().await.map_err(|error| RequestError::new(error.to_string()))?;
        let address = *found.first().ok_or_else(|| RequestError::new("its name has no address"))?;
        let headers = [("content-type", "application/json")];
        let login = ServiceRequest { method: "POST", path: "/auth/login", headers: &headers, body: Bytes::from(body) };
        let answer = client::send(address, &host.to_string(), Some(self.tls()), login, MAX_ANSWER, TIMEOUT).await;
        answer.map_err(|error| RequestError::new(format!("auth-service at {address}: {error}")))
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<String, Session>> {
        // Nothing panics while it is held.
        self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The id of a session in the header `Cookie`.
fn cookie(header: &str) -> Option<&str> {
    header.split(';').find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// 256 random bits of the operating system.
fn random() -> std::io::Result<String> {
    let mut bytes = [0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_found_among_others() {
        assert_eq!(cookie("a=b; session=x; c=d"), Some("x"));
        assert_eq!(cookie("session=x"), Some("x"));
        assert_eq!(cookie("sessions=x; asession=y"), None);
    }
}
