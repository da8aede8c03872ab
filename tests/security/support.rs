//! An issuer, and services that trust it.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use runtime::Shutdown;
use serde_json::Value as Json;
use surf::http::Method;
use testbed::{
    Scratch,
    http::{Client, Response},
    ports,
    service::{Launch, Service},
    tokens::{self, SigningKey},
    until,
};
use web::{Problem, Router};

/// Time for a condition.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// `iss` of every token of the tests.
pub(crate) const ISSUER: &str = "https://issuer.example";
/// Nobody listens there.
const UNREACHABLE: &str = "127.0.0.1:9";
/// Every scope that there is.
pub(crate) const ALL: &str = "patients:read patients:write patients:erase billing:read billing:write analytics:read";

/// An issuer's JWK set over HTTP. It can change, and every request is counted.
#[derive(Clone)]
pub(crate) struct Issuer {
    pub(crate) address: SocketAddr,
    answer: Arc<Mutex<(u16, String)>>,
    requests: Arc<AtomicUsize>,
}

impl Issuer {
    /// An issuer that publishes these keys.
    pub(crate) fn start<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> Self {
        let mut reader = config::Reader::new(config::Environment::empty().with("SERVER_PORT", "0"));
        let server = web::Server::bind(&web::Settings::read(&mut reader, "0")).unwrap();
        let issuer = Self { address: server.address(), answer: Arc::default(), requests: Arc::default() };
        issuer.publish(&tokens::jwk_set(keys));
        let app = Router::new(issuer.clone()).get("/:any", answer).build();
        // It ends with the test's process.
        runtime::spawn(server.serve(app, Shutdown::new())).detach();
        issuer
    }

    pub(crate) fn publish(&self, set: &Json) {
        *self.answer.lock().unwrap() = (200, set.to_string());
    }

    pub(crate) fn fail(&self) {
        *self.answer.lock().unwrap() = (500, String::new());
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Requests so far, whatever their path.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn answer(request: tide::Request<Issuer>) -> Result<tide::Response, Problem> {
    let issuer = request.state();
    issuer.requests.fetch_add(1, Ordering::SeqCst);
    let (status, body) = issuer.answer.lock().unwrap().clone();
    let mut response = web::text("application/json", body);
    response.set_status(tide::StatusCode::try_from(status).unwrap());
    Ok(response)
}

/// A service that trusts an issuer, and everything that it needs.
pub(crate) struct Secured {
    pub(crate) service: Service,
    pub(crate) client: Client,
    /// Health and metrics.
    pub(crate) operations: Client,
    pub(crate) grpc: SocketAddr,
    pub(crate) scratch: Scratch,
    pub(crate) name: &'static str,
}

impl Secured {
    /// Starts the service with more settings, and waits until it is alive.
    pub(crate) async fn start(name: &'static str, keys: &str, extra: &[(&str, &str)]) -> Self {
        let (operations, grpc) = (ports::free(), ports::free());
        let scratch = Scratch::new().unwrap();
        let database = if name == "analytics-service" { String::new() } else { testbed::shared_database().await };
        let state = scratch.path().join("state.sqlite").display().to_string();
        let mut environment = BTreeMap::from([
            ("LOG_FORMAT", "json".to_owned()),
            ("LOG_LEVEL", "debug".to_owned()),
            ("DATABASE_URL", database),
            ("KAFKA_BOOTSTRAP_SERVERS", UNREACHABLE.to_owned()),
            ("BILLING_SERVICE_ADDRESS", UNREACHABLE.to_owned()),
            ("STATE_FILE", state),
            ("GRPC_SERVER_PORT", grpc.to_string()),
            ("OPERATIONS_PORT", operations.to_string()),
            ("AUTH", "jwt".to_owned()),
            ("AUTH_ISSUER", ISSUER.to_owned()),
            ("AUTH_AUDIENCE", name.to_owned()),
            (if keys.starts_with("http") { "AUTH_JWKS_URL" } else { "AUTH_JWKS_FILE" }, keys.to_owned()),
        ]);
        environment.extend(extra.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let launch = Launch::new(name, scratch.path(), environment);
        let service = launch.start_guarded(&scratch).unwrap_or_else(|error| panic!("{error}"));
        let client = service.client();
        let operations = Client::new(format!("127.0.0.1:{operations}"));
        let grpc = SocketAddr::from(([127, 0, 0, 1], grpc));
        let started = Self { service, client, operations, grpc, scratch, name };
        until("the service is alive", async || {
            started.client.get("/actuator/health/liveness").await.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        started
    }

    /// Starts the service with the keys in a file, and waits until it is ready.
    pub(crate) async fn with_keys(name: &'static str, set: &Json) -> Self {
        let scratch = Scratch::new().unwrap();
        let file = scratch.path().join("keys.json");
        fs::write(&file, set.to_string()).unwrap();
        let started = Self::start(name, file.to_str().unwrap(), &[]).await;
        started.until_ready().await;
        started
    }

    pub(crate) async fn until_ready(&self) {
        until("the service is ready", async || self.service.is_ready().await).await;
    }

    /// A request with this token.
    pub(crate) async fn send(&self, method: Method, path: &str, token: &str, body: Option<&Json>) -> Response {
        let authorization = format!("Bearer {token}");
        self.client.send(method, path, &[("authorization", &authorization)], body).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Response {
        self.send(Method::Get, path, token, None).await
    }

    /// Claims of a valid token.
    pub(crate) fn claims(&self, subject: &str, scopes: &str) -> Json {
        tokens::claims(ISSUER, self.name, subject, scopes)
    }

    /// The value of a metric, 0 if there is none.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        self.operations.get("/metrics").await.unwrap().metric(name).unwrap_or_default()
    }
}

/// The head of the answer to these bytes, for what no client would send.
pub(crate) fn raw(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut bytes = [0; 1024];
    while !answer.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        match stream.read(&mut bytes).unwrap() {
            0 => break,
            read => answer.extend_from_slice(&bytes[..read]),
        }
    }
    String::from_utf8(answer).unwrap()
}

/// The status in a head.
pub(crate) fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}
