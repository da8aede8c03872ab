//! The HTTP edge.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use auth::Authenticator;
use serde::{Deserialize, Serialize};
use serde_json::json;
use telemetry::metrics::{self, IntCounterVec};
use tide::{Response, StatusCode};
use web::{Problem, Router, json as answer, read_json};

use crate::{
    Settings,
    limiter::Limiter,
    signer::Signer,
    users::{self, Users},
};

/// The longest email, in bytes (RFC 5321).
const MAX_EMAIL: usize = 254;
/// `Retry-After` while too many passwords are being checked.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// The path of the JWK set.
const KEYS: &str = "/.well-known/jwks.json";

static LOGINS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Logins by outcome: ok; rejected, for a wrong email or password; limited, after too many; busy.";
    metrics::counters("auth_logins_total", help, &["outcome"])
});

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct App {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    users: Users,
    signer: Signer,
    limiter: Limiter,
    authenticator: Authenticator,
}

impl App {
    pub(crate) fn new(settings: Settings, users: Users, signer: Signer, authenticator: Authenticator) -> Self {
        for outcome in ["ok", "rejected", "limited", "busy"] {
            LOGINS.with_label_values(&[outcome]);
        }
        Self { inner: Arc::new(Inner { settings, users, signer, limiter: Limiter::default(), authenticator }) }
    }
}

type Request = tide::Request<App>;

/// The route table. Every route is open: a login brings no token, and the others show nothing that is secret.
pub(crate) fn routes(app: App) -> Router<App> {
    let in_flight = app.inner.settings.http.limits.in_flight;
    Router::new(app)
        .limit_in_flight(in_flight)
        .at_root("This is auth-service. Tokens are issued at /auth/login.")
        .post("/auth/login", login)
        .open()
        .get("/auth/validate", validate)
        .open()
        .get("/.well-known/openid-configuration", configuration)
        .open()
        .get(KEYS, keys)
        .open()
}

#[derive(Deserialize)]
struct LoginInput {
    email: String,
    password: String,
}

#[derive(Serialize)]
struct LoginBody {
    token: String,
}

async fn login(mut request: Request) -> Result<Response, Problem> {
    let app = request.state().inner.clone();
    let address = web::client_address(&request);
    let LoginInput { email, password } = read_json(&mut request, &app.settings.http.limits).await?;
    if email.len() > MAX_EMAIL || password.len() > users::MAX_PASSWORD {
        return Err(Problem::bad_request("The email or the password is too long.").kind("invalid-login"));
    }
    let account = users::key(&email);
    let mut attempt = app.limiter.begin(&account, address, Instant::now()).map_err(|wait| {
        count("limited");
        let detail = "There were too many logins for this account or from this address. Try again later.";
        let problem = Problem::new(StatusCode::TooManyRequests, detail).kind("too-many-logins");
        problem.retry_after(wait)
    })?;
    let user = app.users.check(&email, password, || attempt.check_begins()).await.map_err(|busy| {
        count("busy");
        Problem::unavailable(format!("The login cannot be checked now: {busy}."), RETRY_AFTER)
    })?;
    let Some(user) = user else {
        count("rejected");
        // Whether there is such an account is nobody's business.
        let problem = Problem::new(StatusCode::Unauthorized, "The email or the password is wrong.");
        return Err(problem.kind("wrong-login").header("www-authenticate", "Bearer"));
    };
    app.limiter.succeeded(&account);
    let Settings { issuer, audiences, lifetime, .. } = &app.settings;
    let token = app.signer.token(&user, issuer, &audiences.0, *lifetime).map_err(|_| Problem::internal())?;
    count("ok");
    tracing::info!(subject = user.subject, "token issued");
    let mut response = answer(StatusCode::Ok, &LoginBody { token });
    response.insert_header("cache-control", "no-store");
    Ok(response)
}

/// Whether the request's token is valid: 200 or 401.
async fn validate(request: Request) -> Result<Response, Problem> {
    let values = request.header("authorization").into_iter().flatten().map(|value| value.as_str());
    match request.state().inner.authenticator.caller(values).await {
        Ok(_) => Ok(Response::new(StatusCode::Ok)),
        Err(rejection) => Err(web::rejected(&rejection)),
    }
}

async fn configuration(request: Request) -> Result<Response, Problem> {
    let issuer = &request.state().inner.settings.issuer;
    // The members that OpenID Connect Discovery requires, of what there is.
    let configuration = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}{KEYS}"),
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    Ok(answer(StatusCode::Ok, &configuration))
}

async fn keys(request: Request) -> Result<Response, Problem> {
    Ok(answer(StatusCode::Ok, &request.state().inner.signer.jwk_set()))
}

fn count(outcome: &str) {
    LOGINS.with_label_values(&[outcome]).inc();
}
