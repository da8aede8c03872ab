//! The service under test, with a billing service of the test, and a client of it.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use billing_api::{DESCRIPTORS, billing_service_server::BillingServiceServer};
use config::{Environment, Reader};
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _};
use grpc::{Routes, Server, ServerSettings};
use patient_service::{Service, Settings};
use postgres::{Database, PgConnection};
use runtime::Shutdown;
use serde_json::{Value as Json, json};
use smol::Task;
use testbed::{
    http::{self, Client},
    until,
};

use crate::test_billing::TestBilling;

/// Timeout of a response.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Harness {
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    pub(crate) billing: TestBilling,
    /// The service's database, for checks and changes beside the service.
    pub(crate) database: Database,
    pub(crate) database_url: String,
    shutdown: Shutdown,
    running: Task<Result<(), runtime::Failure>>,
    billing_server: (Shutdown, Task<()>),
}

/// Runs a test on a service with an empty database and no broker.
pub(crate) fn with_service<F: Future<Output = ()>>(test: impl FnOnce(Arc<Harness>) -> F) {
    with_settings(&[], test);
}

/// As [`with_service`], with some more settings.
pub(crate) fn with_settings<F: Future<Output = ()>>(
    settings: &'static [(&str, &str)],
    test: impl FnOnce(Arc<Harness>) -> F,
) {
    runtime::block_on(2, async {
        let harness = Arc::new(Harness::start(&testbed::shared_database().await, settings).await);
        test(harness.clone()).await;
        Arc::into_inner(harness).expect("the test has ended").stop().await;
    });
}

impl Harness {
    /// Starts the service and waits until it is ready.
    pub(crate) async fn start(database_url: &str, settings: &[(&str, &str)]) -> Self {
        let harness = Self::start_unready(database_url, settings).await;
        until("the service is ready", async || harness.get("/actuator/health/readiness").await.status == 200).await;
        harness.database.assume_migrated();
        harness
    }

    /// Starts the service.
    pub(crate) async fn start_unready(database_url: &str, settings: &[(&str, &str)]) -> Self {
        let billing = TestBilling::default();
        let server = ServerSettings {
            address: ([127, 0, 0, 1], 0).into(),
            drain: Duration::from_secs(1),
            tls: None,
            max_connection_age: None,
        };
        let server = Server::bind(&server).unwrap();
        let port = server.address().port().to_string();
        let billing_shutdown = Shutdown::new();
        let health = grpc::Health::not_serving("BillingService").await;
        let routes = Routes::new(BillingServiceServer::new(billing.clone()));
        let serve = server.serve(routes, health, DESCRIPTORS, billing_shutdown.clone());
        let serving = runtime::spawn(async { serve.await.unwrap() });

        let mut environment = Environment::empty()
            .with("DATABASE_URL", database_url)
            .with("DATABASE_DEADLINE", "1s")
            .with("SERVER_PORT", "0")
            .with("BILLING_SERVICE_ADDRESS", "127.0.0.1")
            .with("BILLING_SERVICE_GRPC_PORT", port)
            // Nobody listens there: most tests have no broker, and nothing may depend on one.
            .with("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9");
        for (name, value) in settings {
            environment = environment.with(*name, *value);
        }
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader);
        let settings = reader.finish(settings).unwrap().0;
        let database = Database::new(settings.database.clone());
        let service = Service::build(settings).await.unwrap();
        let (address, shutdown) = (service.address(), Shutdown::new());
        let running = runtime::spawn(service.run(shutdown.clone()));
        Self {
            client: Client::new(address),
            address,
            billing,
            database,
            database_url: database_url.to_owned(),
            shutdown,
            running,
            billing_server: (billing_shutdown, serving),
        }
    }

    pub(crate) async fn stop(self) {
        self.database.close().await;
        self.shutdown.trigger();
        self.running.await.unwrap();
        self.billing_server.0.trigger();
        self.billing_server.1.await;
    }

    pub(crate) async fn get(&self, path: &str) -> http::Response {
        self.client.get(path).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Json) -> http::Response {
        self.client.post(path, body).await.unwrap()
    }

    /// Registers a patient with this name and an email derived from it; returns the response.
    pub(crate) async fn register(&self, name: &str) -> Json {
        let answer = self.post("/patients", &patient(name)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    /// The status of the response to raw bytes, which have to request `Connection: close`.
    pub(crate) async fn raw(&self, request: &[u8]) -> u16 {
        let answer = self.raw_answer(request).await;
        answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
    }

    /// The whole answer, as surf does not show it.
    pub(crate) async fn raw_answer(&self, request: &[u8]) -> String {
        let mut stream = smol::net::TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        runtime::timeout(TIMEOUT, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A number from the service's database.
    pub(crate) async fn number(&self, statement: &'static str) -> i64 {
        let number = async |connection: &mut PgConnection| {
            use postgres::Row as _;
            postgres::query(statement).fetch_one(connection).await?.try_get(0)
        };
        self.database.run(number).await.unwrap()
    }
}

/// A patient as a client sends one.
pub(crate) fn patient(name: &str) -> Json {
    let name_in_ascii = name.to_lowercase();
    let words = name_in_ascii.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let local = words.collect::<Vec<_>>().join(".");
    json!({
        "name": name,
        "email": format!("{local}@example.org"),
        "address": "1 Main Street",
        "dateOfBirth": "1990-12-31",
        "registeredDate": "2024-02-29",
    })
}

/// The id of a patient as answered.
pub(crate) fn id(patient: &Json) -> String {
    patient["id"].as_str().unwrap().to_owned()
}

/// The path of a patient as answered.
pub(crate) fn path(patient: &Json) -> String {
    format!("/patients/{}", id(patient))
}

/// Runs `count` tasks concurrently; returns their results.
pub(crate) async fn at_once<T: Send + 'static, F>(count: usize, work: impl Fn(usize) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = (0..count).map(|n| runtime::spawn(work(n))).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await);
    }
    results
}

/// Executes a statement on the service's database.
pub(crate) async fn execute(service: &Harness, statement: &'static str) {
    let execute = async |connection: &mut PgConnection| postgres::query(statement).execute(connection).await;
    service.database.run(execute).await.unwrap();
}
