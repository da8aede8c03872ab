use std::{
    sync::{
        Arc, LazyLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::errors::ErrorKind;
use runtime::{Backoff, Shutdown};
use smol::lock::Mutex;
use telemetry::{
    Outage,
    metrics::{self, IntCounterVec, IntGauge},
};

use crate::{
    Caller, Identity, JwtSettings, Mode, Rejection, Scope, Settings,
    cache::{Digest, TokenCache},
    claims::{self, Claims},
    crypto,
    keys::{KeySet, LEEWAY},
};

/// The longest token, in bytes. Tokens with many roles have some 4 KiB.
const MAX_TOKEN: usize = 8 * 1024;

/// When keys are fetched, and for how long they are good.
#[derive(Clone, Copy, Debug)]
struct Intervals {
    /// Between two fetches.
    refresh: Duration,
    /// Between two fetches for tokens with an unknown key id, which anybody can make.
    on_demand: Duration,
    /// For how long keys are used that cannot be fetched again.
    keep: Duration,
    /// After a failed fetch, while there are no keys.
    retry: (Duration, Duration),
}

const INTERVALS: Intervals = Intervals {
    refresh: Duration::from_secs(5 * 60),
    on_demand: Duration::from_secs(30),
    keep: Duration::from_secs(24 * 60 * 60),
    retry: (Duration::from_secs(1), Duration::from_secs(30)),
};

static CALLS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Calls that need a token, by outcome: verified; cached, if the token was verified before; missing, \
                invalid, forbidden (401, 401, 403); no_keys (503).";
    metrics::counters("auth_calls_total", help, &["outcome"])
});
static FETCHES: LazyLock<IntCounterVec> =
    LazyLock::new(|| metrics::counters("auth_key_fetches_total", "Fetches of the issuer's keys.", &["outcome"]));
static KEYS: LazyLock<IntGauge> = LazyLock::new(|| metrics::gauge("auth_keys", "Usable keys of the issuer."));

/// Says who makes a call. Clones share keys and verified tokens.
///
/// With tokens, [`run`](Self::run) has to run: it fetches the keys.
#[derive(Clone, Debug, Default)]
pub struct Authenticator {
    /// Absent if callers need no token.
    tokens: Option<Arc<Tokens>>,
}

#[derive(Debug)]
struct Tokens {
    settings: JwtSettings,
    intervals: Intervals,
    keys: RwLock<Option<Current>>,
    cache: TokenCache,
    /// Held during a fetch. The time is that of the last fetch for an unknown key id.
    fetching: Arc<Mutex<Option<Instant>>>,
    /// Fetches that have ended.
    fetches: AtomicU64,
    outage: Outage,
}

/// The keys in use.
#[derive(Clone, Debug)]
struct Current {
    set: Arc<KeySet>,
    fetched: Instant,
}

impl Authenticator {
    /// Identifies callers as the settings say.
    pub fn new(settings: &Settings) -> Self {
        match &settings.mode {
            Mode::Off { .. } => Self::off(),
            Mode::Jwt(jwt) => Self::with_intervals(jwt.clone(), INTERVALS),
        }
    }

    /// Callers need no token and may do everything.
    pub fn off() -> Self {
        Self { tokens: None }
    }

    fn with_intervals(settings: JwtSettings, intervals: Intervals) -> Self {
        crypto::install();
        for outcome in ["verified", "cached", "missing", "invalid", "forbidden", "no_keys"] {
            CALLS.with_label_values(&[outcome]);
        }
        let tokens = Tokens {
            settings,
            intervals,
            keys: RwLock::default(),
            cache: TokenCache::default(),
            fetching: Arc::default(),
            fetches: AtomicU64::new(0),
            outage: Outage::new(),
        };
        Self { tokens: Some(Arc::new(tokens)) }
    }

    /// Whether callers need a token.
    pub fn is_on(&self) -> bool {
        self.tokens.is_some()
    }

    /// The caller with this token. The values are those of all `Authorization` headers of the call.
    ///
    /// It waits only for a token with a key id that is not known: for a fetch of the keys, at most 5 s.
    ///
    /// # Errors
    /// If there is no valid token, or none can be verified now.
    pub async fn caller<'a>(&self, authorization: impl IntoIterator<Item = &'a str>) -> Result<Caller, Rejection> {
        let Some(tokens) = &self.tokens else { return Ok(Caller::Unidentified) };
        let identity = match bearer(authorization) {
            Ok(token) => tokens.identity(token).await,
            Err(rejection) => Err(rejection),
        };
        identity.map(Caller::Client).inspect_err(|rejection| count(rejection.outcome()))
    }

    /// Whether the caller may do what needs `scope`.
    ///
    /// # Errors
    /// If not.
    pub fn authorize(&self, caller: &Caller, scope: Scope) -> Result<(), Rejection> {
        if caller.has(scope) {
            return Ok(());
        }
        let rejection = Rejection::Forbidden(scope);
        count(rejection.outcome());
        Err(rejection)
    }

    /// Fetches the keys until the shutdown: at the start, and again at intervals.
    pub async fn run(self, shutdown: Shutdown) {
        let Some(tokens) = self.tokens else { return shutdown.wait().await };
        let (first, max) = tokens.intervals.retry;
        let mut retry = Backoff::new(first, max);
        loop {
            let fetch = async {
                let _fetching = tokens.fetching.lock().await;
                tokens.fetch().await
            };
            let Some(has_keys) = shutdown.run_until_stopped(fetch).await else { return };
            let pause = if has_keys {
                retry.reset();
                tokens.intervals.refresh
            } else {
                retry.next_pause()
            };
            if shutdown.run_until_stopped(smol::Timer::after(pause)).await.is_none() {
                return;
            }
        }
    }

    /// What keeps tokens from being verified, for the readiness of a service.
    pub fn trouble(&self) -> Option<String> {
        let tokens = self.tokens.as_ref()?;
        if tokens.current().is_some() {
            return None;
        }
        let why = tokens.outage.reason().unwrap_or_else(|| "not fetched yet".to_owned());
        Some(format!("the keys of the issuer are not known: {why}"))
    }
}

impl Tokens {
    /// The identity of a token, from the cache or verified.
    async fn identity(self: &Arc<Self>, token: &str) -> Result<Arc<Identity>, Rejection> {
        if token.len() > MAX_TOKEN {
            return Err(Rejection::Invalid("it is too long"));
        }
        let digest: Digest =
            ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref().try_into().expect("32 bytes");
        // Before the cache, because a remembered token must not outlive the keys.
        self.current().ok_or(Rejection::NoKeys)?;
        if let Some(identity) = self.cache.get(&digest) {
            if identity.expires.saturating_add(LEEWAY) >= now() {
                count("cached");
                return Ok(identity);
            }
            self.cache.remove(&digest);
            return Err(EXPIRED);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Rejection::Invalid("it is malformed"))?;
        // RFC 7515, section 4.1.11: no extension is understood.
        if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
            return Err(Rejection::Invalid("its header has an extension that is not supported"));
        }
        let (id, algorithm) = (header.kid.as_deref(), header.alg);
        // In this order, see `replace`.
        let mut change = self.cache.keys();
        let mut current = self.current().ok_or(Rejection::NoKeys)?;
        // Not for a key whose kind does not fit the algorithm: a fetch would not help.
        if current.set.find(id, algorithm).is_none() && id.is_some_and(|id| !current.set.has(id)) {
            self.fetch_on_demand().await;
            change = self.cache.keys();
            current = self.current().ok_or(Rejection::NoKeys)?;
        }
        let key = current.set.find(id, algorithm).ok_or(Rejection::Invalid("its key or algorithm is not known"))?;
        let verified = jsonwebtoken::decode::<Claims>(token, &key.key, &key.validation).map_err(reason)?;
        let identity = claims::identity(&verified.claims, header.typ.as_deref(), &self.settings.audience)
            .map_err(Rejection::Invalid)?;
        let identity = Arc::new(identity);
        self.cache.insert(digest, identity.clone(), change);
        count("verified");
        Ok(identity)
    }

    /// The keys, unless there are none or they are too old.
    fn current(&self) -> Option<Current> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.as_ref().filter(|current| current.fetched.elapsed() <= self.intervals.keep).cloned()
    }

    /// Fetches the keys for an unknown key id, unless that was done recently. If somebody else is fetching them, waits for
    /// that.
    ///
    /// The fetch is a task of its own: the call is dropped when its client disconnects, and another fetch is not due then.
    async fn fetch_on_demand(self: &Arc<Self>) {
        let fetches = self.fetches.load(Ordering::Acquire);
        let mut last = self.fetching.lock_arc().await;
        let is_due = last.is_none_or(|last| last.elapsed() >= self.intervals.on_demand);
        if is_due && self.fetches.load(Ordering::Acquire) == fetches {
            *last = Some(Instant::now());
            let tokens = self.clone();
            let fetch = async move {
                tokens.fetch().await;
                drop(last);
            };
            runtime::spawn(fetch).detach();
            // Held until the fetch has ended.
            drop(self.fetching.lock().await);
        }
    }

    /// Fetches the keys, and keeps those it has if that fails. Returns whether there are keys.
    async fn fetch(&self) -> bool {
        let fetched = match self.settings.keys.fetch().await {
            Ok(bytes) => KeySet::parse(&bytes, &self.settings),
            Err(error) => Err(error),
        };
        match fetched {
            Ok(set) => {
                FETCHES.with_label_values(&["ok"]).inc();
                if let Some(lasted) = self.outage.recovered() {
                    tracing::info!(lasted_ms = lasted.as_millis() as u64, "the issuer's keys are fetched again");
                }
                self.replace(set);
            }
            Err(error) => {
                FETCHES.with_label_values(&["failed"]).inc();
                if self.outage.failed_for((), &error, error.clone()) {
                    tracing::warn!(%error, "the issuer's keys could not be fetched");
                }
            }
        }
        self.fetches.fetch_add(1, Ordering::Release);
        let has_keys = self.current().is_some();
        if !has_keys {
            KEYS.set(0);
        }
        has_keys
    }

    fn replace(&self, set: KeySet) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let is_same = keys.as_ref().is_some_and(|current| current.set.is_same_as(&set));
        if !is_same {
            tracing::info!(keys = set.len(), skipped = set.skipped, "the issuer has other keys");
        }
        KEYS.set(set.len() as i64);
        *keys = Some(Current { set: Arc::new(set), fetched: Instant::now() });
        drop(keys);
        // After the keys: who counts changes before reading the keys, and has the old ones, must not fill the cache.
        if !is_same {
            self.cache.keys_changed();
        }
    }
}

const EXPIRED: Rejection = Rejection::Invalid("it has expired");

/// The token in the `Authorization` headers of a call.
fn bearer<'a>(authorization: impl IntoIterator<Item = &'a str>) -> Result<&'a str, Rejection> {
    let mut values = authorization.into_iter();
    let value = values.next().ok_or(Rejection::Missing)?;
    if values.next().is_some() {
        return Err(Rejection::Invalid("there is more than one Authorization header"));
    }
    let (scheme, token) = value.trim().split_once(' ').ok_or(Rejection::Missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Rejection::Missing);
    }
    let token = token.trim_start();
    // b64token of RFC 6750.
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if token.is_empty() || !token.bytes().all(is_token) {
        return Err(Rejection::Invalid("it is malformed"));
    }
    Ok(token)
}

/// What is wrong with a token, in constant words: an error of `jsonwebtoken` can quote it.
fn reason(error: jsonwebtoken::errors::Error) -> Rejection {
    match error.kind() {
        ErrorKind::ExpiredSignature => EXPIRED,
        ErrorKind::ImmatureSignature => Rejection::Invalid("it is not valid yet"),
        ErrorKind::InvalidSignature => Rejection::Invalid("its signature is wrong"),
        ErrorKind::InvalidAlgorithm => Rejection::Invalid("its key or algorithm is not known"),
        ErrorKind::InvalidIssuer => Rejection::Invalid("it is of another issuer"),
        ErrorKind::InvalidAudience => Rejection::Invalid("it is for another audience"),
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => {
            Rejection::Invalid("exp, iss, aud or sub is missing or not valid")
        }
        _ => Rejection::Invalid("it is malformed"),
    }
}

fn count(outcome: &str) {
    CALLS.with_label_values(&[outcome]).inc();
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests;
