//! A service under test, a client of it, and the billing service of the test.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use billing_api::{
    BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, DESCRIPTORS, GetBillingAccountRequest,
    ListTransactionsRequest, Money, RecordTransactionRequest, Transaction, TransactionType,
    billing_service_server::{BillingService, BillingServiceServer},
};
use config::{Environment, Reader};
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _, Stream, StreamExt as _, stream};
use grpc::{Request, Response, Routes, Server, ServerSettings, Status};
use patient_service::{Service, Settings};
use postgres::{Database, PgConnection};
use runtime::Shutdown;
use serde_json::{Value as Json, json};
use smol::Task;
use testbed::http::{Answer, Client};

/// How long a test waits for what is going to happen.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Harness {
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    pub(crate) billing: Books,
    /// The service's own database, for looking behind it.
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
        harness
            .until("the service is ready", async || harness.get("/actuator/health/readiness").await.status == 200)
            .await;
        harness.database.assume_migrated();
        harness
    }

    /// Starts the service.
    pub(crate) async fn start_unready(database_url: &str, settings: &[(&str, &str)]) -> Self {
        let billing = Books::default();
        let server = ServerSettings { address: ([127, 0, 0, 1], 0).into(), drain: Duration::from_secs(1) };
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
            // Nobody listens there: a service without a broker is the rule here, and nothing must depend on it.
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

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.client.get(path).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Json) -> Answer {
        self.client.post(path, body).await.unwrap()
    }

    /// Registers a patient of this name, whose email is made of it; gives the patient as answered.
    pub(crate) async fn register(&self, name: &str) -> Json {
        let answer = self.post("/patients", &patient(name)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    /// The status of the answer to a request of any bytes that asks for the connection to be closed.
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

    /// Waits for something that is going to happen.
    pub(crate) async fn until(&self, what: &str, mut happened: impl AsyncFnMut() -> bool) {
        let end = Instant::now() + TIMEOUT;
        while !happened().await {
            assert!(Instant::now() < end, "it has not happened: {what}");
            smol::Timer::after(Duration::from_millis(10)).await;
        }
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

/// Waits for tasks that all do the same and gives what they gave.
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

/// How the billing service of a test behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mood {
    Well,
    /// It says UNAVAILABLE.
    Unavailable,
    /// It never answers.
    Silent,
    /// It does its work and never answers.
    SilentAfterwards,
    /// It is an original's, which opens accounts and has no other call.
    Original,
    /// Its lists break off with an error after their first entry.
    BreaksOff,
    /// Its lists give their first entry and then nothing more.
    Stalls,
}

const MOODS: [Mood; 7] = [
    Mood::Well,
    Mood::Unavailable,
    Mood::Silent,
    Mood::SilentAfterwards,
    Mood::Original,
    Mood::BreaksOff,
    Mood::Stalls,
];

/// Accounts with their ledgers, by patient.
type Accounts = HashMap<String, (BillingAccount, Vec<Transaction>)>;

/// The billing service of a test: accounts in memory.
#[derive(Clone, Default)]
pub(crate) struct Books {
    mood: Arc<AtomicU8>,
    accounts: Arc<Mutex<Accounts>>,
    /// `tracestate` and `baggage` of each call to open an account.
    propagated: Arc<Mutex<Vec<[Option<String>; 2]>>>,
}

impl Books {
    pub(crate) fn propagated(&self) -> Vec<[Option<String>; 2]> {
        self.propagated.lock().unwrap().clone()
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    /// ACTIVE, CLOSED, or none if there is no account.
    pub(crate) fn status(&self, patient_id: &str) -> Option<String> {
        self.accounts.lock().unwrap().get(patient_id).map(|(account, _)| account.status.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.accounts.lock().unwrap().len()
    }

    /// As [`with`](Self::with), for a call that the originals do not have.
    async fn with_more<T>(&self, work: impl FnOnce(&mut Accounts) -> Result<T, Status>) -> Result<Response<T>, Status> {
        if self.mood() == Mood::Original {
            return Err(Status::unimplemented("Method not found"));
        }
        self.with(work).await
    }

    fn mood(&self) -> Mood {
        MOODS[usize::from(self.mood.load(Ordering::SeqCst))]
    }

    async fn with<T>(&self, work: impl FnOnce(&mut Accounts) -> Result<T, Status>) -> Result<Response<T>, Status> {
        let mood = self.mood();
        if mood == Mood::Unavailable {
            return Err(Status::unavailable("as the test wants it"));
        }
        if mood == Mood::Silent {
            std::future::pending::<()>().await;
        }
        let result = work(&mut self.accounts.lock().unwrap());
        if mood == Mood::SilentAfterwards {
            std::future::pending::<()>().await;
        }
        result.map(Response::new)
    }
}

#[grpc::async_trait]
impl BillingService for Books {
    type ListTransactionsStream = Pin<Box<dyn Stream<Item = Result<Transaction, Status>> + Send>>;

    async fn create_billing_account(
        &self,
        request: Request<BillingRequest>,
    ) -> Result<Response<BillingResponse>, Status> {
        let header = |name| request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
        self.propagated.lock().unwrap().push(["tracestate", "baggage"].map(header));
        let request = request.into_inner();
        assert!(!request.name.is_empty() && !request.email.is_empty(), "billing is told whose account it is");
        let open = |accounts: &mut Accounts| {
            let next = accounts.len();
            let (account, _) = accounts.entry(request.patient_id).or_insert_with(|| {
                let account = BillingAccount {
                    account_id: format!("account-{next}"),
                    status: "ACTIVE".to_owned(),
                    balances: vec![],
                };
                (account, Vec::new())
            });
            Ok(BillingResponse { account_id: account.account_id.clone(), status: account.status.clone() })
        };
        self.with(open).await
    }

    async fn get_billing_account(
        &self,
        request: Request<GetBillingAccountRequest>,
    ) -> Result<Response<BillingAccount>, Status> {
        let patient_id = request.into_inner().patient_id;
        self.with_more(|accounts| {
            accounts.get(&patient_id).map(|(account, _)| account.clone()).ok_or_else(|| Status::not_found("none"))
        })
        .await
    }

    async fn close_billing_account(
        &self,
        request: Request<CloseBillingAccountRequest>,
    ) -> Result<Response<BillingResponse>, Status> {
        let patient_id = request.into_inner().patient_id;
        self.with_more(|accounts| {
            let (account, _) = accounts.get_mut(&patient_id).ok_or_else(|| Status::not_found("none"))?;
            account.status = "CLOSED".to_owned();
            Ok(BillingResponse { account_id: account.account_id.clone(), status: account.status.clone() })
        })
        .await
    }

    async fn record_transaction(
        &self,
        request: Request<RecordTransactionRequest>,
    ) -> Result<Response<Transaction>, Status> {
        let request = request.into_inner();
        let (kind, money) = (request.r#type(), request.amount.unwrap_or_default());
        self.with_more(|accounts| {
            let (account, ledger) = accounts.get_mut(&request.patient_id).ok_or_else(|| Status::not_found("none"))?;
            if money.amount < 1 {
                return Err(Status::invalid_argument("the amount must be from 1 to 1000000000000 minor units"));
            }
            if let Some(first) = ledger.iter().find(|entry| entry.transaction_id == request.transaction_id) {
                let same = first.amount.as_ref() == Some(&money) && first.r#type() == kind;
                return if same { Ok(first.clone()) } else { Err(Status::already_exists("another")) };
            }
            if account.status == "CLOSED" && kind == TransactionType::Charge {
                return Err(Status::failed_precondition("closed"));
            }
            let sign = if kind == TransactionType::Payment { -1 } else { 1 };
            let balance = account.balances.iter_mut().find(|balance| balance.currency == money.currency);
            let sum = balance.as_ref().map_or(0, |balance| balance.amount).checked_add(sign * money.amount);
            let sum = sum.ok_or_else(|| Status::out_of_range("the balance"))?;
            let entry = Transaction {
                transaction_id: request.transaction_id,
                r#type: kind.into(),
                amount: Some(money.clone()),
                recorded_at: Some(SystemTime::now().into()),
                position: ledger.len() as i64 + 1,
            };
            match balance {
                Some(balance) => balance.amount = sum,
                None => account.balances.push(Money { amount: sum, currency: money.currency }),
            }
            ledger.push(entry.clone());
            Ok(entry)
        })
        .await
    }

    async fn list_transactions(
        &self,
        request: Request<ListTransactionsRequest>,
    ) -> Result<Response<Self::ListTransactionsStream>, Status> {
        let request = request.into_inner();
        self.with_more(|accounts| {
            let (_, ledger) = accounts.get(&request.patient_id).ok_or_else(|| Status::not_found("none"))?;
            let after = ledger.iter().filter(|entry| entry.position > request.after_position).cloned();
            let entries: Vec<_> = after.take(request.limit as usize).map(Ok).collect();
            let entries = stream::iter(entries);
            let broken = Err(Status::unavailable("as the test wants it"));
            Ok::<Self::ListTransactionsStream, _>(match self.mood() {
                Mood::BreaksOff => Box::pin(entries.take(1).chain(stream::once(broken))),
                Mood::Stalls => Box::pin(entries.take(1).chain(stream::pending())),
                _ => Box::pin(entries),
            })
        })
        .await
    }
}

/// Changes the service's database behind it.
pub(crate) async fn execute(service: &Harness, statement: &'static str) {
    let execute = async |connection: &mut PgConnection| postgres::query(statement).execute(connection).await;
    service.database.run(execute).await.unwrap();
}
