//! The service under test and a client of it.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use billing_api::{
    BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, GetBillingAccountRequest,
    ListTransactionsRequest, Money, RecordTransactionRequest, Transaction, TransactionType,
    billing_service_client::BillingServiceClient,
};
use billing_service::{Service, Settings};
use config::{Environment, HostPort, Reader};
use futures_lite::StreamExt as _;
use grpc::{Attempt, CallError, Client, ClientSettings, Code, FailureKind, Status};
use runtime::Shutdown;
use smol::Task;
use telemetry::TraceContext;
use testbed::http2;
use uuid::Uuid;

/// The generated client over tonic's channel.
type Stub = BillingServiceClient<grpc::Channel>;

const DATABASE_DEADLINE: &str = "1s";

pub(crate) struct Harness {
    /// The service's database, for checks and changes beside the service.
    pub(crate) database: String,
    client: Arc<Client>,
    /// Where gRPC is served.
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    shutdown: Shutdown,
    running: Task<Result<(), runtime::Failure>>,
}

/// Runs a test on a service with an empty database.
pub(crate) fn with_service<F: Future<Output = ()>>(test: impl FnOnce(Arc<Harness>) -> F) {
    with_deadline(DATABASE_DEADLINE, test);
}

/// As [`with_service`], with this time for the work on the database.
pub(crate) fn with_deadline<F: Future<Output = ()>>(deadline: &str, test: impl FnOnce(Arc<Harness>) -> F) {
    runtime::block_on(2, async {
        let database = testbed::shared_database().await;
        let harness = Arc::new(Harness::start_with_deadline(&database, deadline).await);
        harness.until_serving().await;
        test(harness.clone()).await;
        Arc::into_inner(harness).expect("the test has ended").stop().await;
    });
}

/// A client with this deadline.
fn client(address: SocketAddr, deadline: Duration) -> Client {
    let address = HostPort { host: address.ip().to_string(), port: address.port() };
    Client::new(ClientSettings { peer: "billing-service", service: "BillingService", address, deadline, tls: None })
        .unwrap()
}

impl Harness {
    pub(crate) async fn start(database_url: &str) -> Self {
        Self::start_with_deadline(database_url, DATABASE_DEADLINE).await
    }

    pub(crate) async fn start_with_deadline(database_url: &str, deadline: &str) -> Self {
        let environment = Environment::empty()
            .with("DATABASE_URL", database_url)
            .with("DATABASE_DEADLINE", deadline)
            .with("SERVER_PORT", "0")
            .with("GRPC_SERVER_PORT", "0");
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader);
        let service = Service::build(reader.finish(settings).unwrap().0).await.unwrap();
        let (grpc, http, shutdown) = (service.grpc_address(), service.http_address(), Shutdown::new());
        let running = runtime::spawn(service.run(shutdown.clone()));
        Self {
            database: database_url.to_owned(),
            client: Arc::new(client(grpc, Duration::from_secs(5))),
            grpc,
            http,
            shutdown,
            running,
        }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.trigger();
        self.running.await.unwrap();
    }

    /// Waits until calls are served. Each attempt has a new client, whose circuit breaker is closed.
    pub(crate) async fn until_serving(&self) {
        let limit = std::time::Instant::now() + Duration::from_secs(30);
        let get = |attempt: Attempt| async move {
            let request = attempt.request(GetBillingAccountRequest { patient_id: Uuid::nil().to_string() });
            BillingServiceClient::new(attempt.channel()).get_billing_account(request).await.map(drop)
        };
        loop {
            let client = client(self.grpc, Duration::from_secs(5));
            let served = client.call("GetBillingAccount", TraceContext::root(), get).await;
            if served.err().is_none_or(|error| error.kind() != FailureKind::Unavailable) {
                return;
            }
            assert!(std::time::Instant::now() < limit, "the service does not serve");
            smol::Timer::after(Duration::from_millis(10)).await;
        }
    }

    async fn call<T, F>(&self, method: impl Fn(Stub, Attempt) -> F) -> Result<T, Code>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let stub = |attempt: Attempt| method(BillingServiceClient::new(attempt.channel()), attempt);
        self.client.call("test", TraceContext::root(), stub).await.map_err(|error| match error {
            CallError::Status(status) => status.code(),
            other => panic!("no answer: {other}"),
        })
    }

    pub(crate) async fn create(&self, patient_id: impl ToString, name: &str) -> Result<BillingResponse, Code> {
        let email = "jane@example.org".to_owned();
        let request = BillingRequest { patient_id: patient_id.to_string(), name: name.to_owned(), email };
        let call = |mut stub: Stub, attempt: Attempt| {
            let request = attempt.request(request.clone());
            async move { Ok(stub.create_billing_account(request).await?.into_inner()) }
        };
        self.call(call).await
    }

    pub(crate) async fn get(&self, patient_id: impl ToString) -> Result<BillingAccount, Code> {
        let patient_id = patient_id.to_string();
        let call = |mut stub: Stub, attempt: Attempt| {
            let request = attempt.request(GetBillingAccountRequest { patient_id: patient_id.clone() });
            async move { Ok(stub.get_billing_account(request).await?.into_inner()) }
        };
        self.call(call).await
    }

    pub(crate) async fn close(&self, patient_id: impl ToString) -> Result<BillingResponse, Code> {
        let patient_id = patient_id.to_string();
        let call = |mut stub: Stub, attempt: Attempt| {
            let request = attempt.request(CloseBillingAccountRequest { patient_id: patient_id.clone() });
            async move { Ok(stub.close_billing_account(request).await?.into_inner()) }
        };
        self.call(call).await
    }

    pub(crate) async fn record(
        &self,
        patient_id: Uuid,
        transaction_id: &str,
        kind: TransactionType,
        amount: i64,
        currency: &str,
    ) -> Result<Transaction, Code> {
        let request = RecordTransactionRequest {
            patient_id: patient_id.to_string(),
            transaction_id: transaction_id.to_owned(),
            r#type: kind.into(),
            amount: Some(Money { amount, currency: currency.to_owned() }),
        };
        let call = |mut stub: Stub, attempt: Attempt| {
            let request = attempt.request(request.clone());
            async move { Ok(stub.record_transaction(request).await?.into_inner()) }
        };
        self.call(call).await
    }

    pub(crate) async fn list(
        &self,
        patient_id: Uuid,
        after_position: i64,
        limit: u32,
    ) -> Result<Vec<Transaction>, Code> {
        let request = ListTransactionsRequest { patient_id: patient_id.to_string(), after_position, limit };
        let call = |mut stub: Stub, attempt: Attempt| {
            let request = attempt.request(request.clone());
            async move { stub.list_transactions(request).await?.into_inner().try_collect().await }
        };
        self.call(call).await
    }

    /// The balance in one currency. Asserts that it equals the sum of the ledger.
    pub(crate) async fn balance(&self, patient_id: Uuid, currency: &str) -> i64 {
        let account = self.get(patient_id).await.unwrap();
        let balance = account.balances.iter().find(|money| money.currency == currency).map_or(0, |money| money.amount);
        let ledger = self.list(patient_id, 0, 0).await.unwrap();
        let sum: i64 = ledger
            .iter()
            .map(|entry| {
                let money = entry.amount.as_ref().unwrap();
                let sign = if entry.r#type() == TransactionType::Payment { -1 } else { 1 };
                if money.currency == currency { sign * money.amount } else { 0 }
            })
            .sum();
        assert_eq!(balance, sum, "the balance is the sum of the ledger");
        balance
    }
}

/// Time to wait for a frame.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);

/// Inserts charges of one cent into the ledger of every account.
pub(crate) const CHARGE_5_000: &str = "INSERT INTO transactions (patient_id, transaction_id, type, amount, currency)
    SELECT patient_id, 't-' || n, 'CHARGE', 1, 'EUR' FROM accounts, generate_series(1, 5000) AS n";
/// See [`CHARGE_5_000`].
pub(crate) const CHARGE_30_000: &str = "INSERT INTO transactions (patient_id, transaction_id, type, amount, currency)
    SELECT patient_id, 't-' || n, 'CHARGE', 1, 'EUR' FROM accounts, generate_series(1, 30000) AS n";

/// A client of `ListTransactions` over raw HTTP/2, which controls how much it reads.
pub(crate) struct LedgerReader {
    connection: http2::Connection,
    /// Bytes of a message that is not complete yet.
    rest: Vec<u8>,
    /// Entries received.
    pub(crate) entries: usize,
}

impl LedgerReader {
    /// Starts the call with a flow-control window of `window` bytes.
    pub(crate) async fn open(grpc: SocketAddr, patient_id: Uuid, window: u32) -> Self {
        let mut connection = http2::Connection::open_with_window(grpc, window).await.unwrap();
        let request = [&[0x0a, 36], patient_id.to_string().as_bytes()].concat();
        connection.call(1, "/BillingService/ListTransactions", &[], &request).await.unwrap();
        Self { connection, rest: Vec::new(), entries: 0 }
    }

    /// Reads until the first bytes of entries arrive.
    pub(crate) async fn begin(&mut self) {
        while self.rest.is_empty() && self.entries == 0 {
            assert_eq!(self.next().await, None, "it has not ended");
        }
    }

    /// Reads the rest; returns the status, or none if the stream was reset.
    pub(crate) async fn read_all(&mut self) -> Option<Code> {
        loop {
            if let Some(end) = self.next().await {
                return end;
            }
        }
    }

    async fn next(&mut self) -> Option<Option<Code>> {
        let frame = self.connection.receive(FRAME_TIMEOUT).await.unwrap().expect("the connection is open");
        if frame.kind == http2::DATA {
            let length = frame.payload.len() as u32;
            for stream in [0, 1] {
                if length > 0 {
                    self.connection.increase_window(stream, length).await.unwrap();
                }
            }
            self.rest.extend(frame.payload.clone());
            while let Some((head, body)) = self.rest.split_at_checked(5) {
                let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
                if body.len() < length {
                    break;
                }
                self.rest.drain(..5 + length);
                self.entries += 1;
            }
        }
        frame.is_end().then(|| frame.grpc_status().map(|code| Code::from_i32(code.into())))
    }
}
