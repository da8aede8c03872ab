//! A service under test and a client of it.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use billing_service::{Service, Settings};
use codec::billing::{
    BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, GetBillingAccountRequest,
    ListTransactionsRequest, Money, RecordTransactionRequest, Transaction, TransactionType,
};
use config::{Environment, HostPort, Reader};
use futures_lite::StreamExt as _;
use grpc::{
    CallError, Client, ClientSettings, Code, Outgoing, Status, billing::billing_service_client::BillingServiceClient,
};
use runtime::Shutdown;
use smol::Task;
use telemetry::TraceContext;
use uuid::Uuid;

/// The generated client over tonic's channel.
type Stub = BillingServiceClient<grpc::Channel>;

pub(crate) struct Harness {
    /// The service's own database, for looking behind it.
    pub(crate) database: String,
    client: Arc<Client>,
    /// Where gRPC is served.
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    shutdown: Shutdown,
    running: Task<Result<(), String>>,
}

/// Runs a test on a service with an empty database.
pub(crate) fn with_service<F: Future<Output = ()>>(test: impl FnOnce(Arc<Harness>) -> F) {
    runtime::block_on(2, async {
        let harness = Arc::new(Harness::start(&testbed::shared_database().await).await);
        harness.until_serving().await;
        test(harness.clone()).await;
        Arc::into_inner(harness).expect("the test has ended").stop().await;
    });
}

/// A client whose calls have so much time.
fn client(address: SocketAddr, deadline: Duration) -> Client {
    let address = HostPort { host: address.ip().to_string(), port: address.port() };
    Client::new(ClientSettings { peer: "billing-service", service: "BillingService", address, deadline }).unwrap()
}

impl Harness {
    pub(crate) async fn start(database_url: &str) -> Self {
        let environment = Environment::empty()
            .with("DATABASE_URL", database_url)
            .with("DATABASE_DEADLINE", "1s")
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

    /// Waits until calls are served, with clients whose breaker knows nothing of the time before.
    pub(crate) async fn until_serving(&self) {
        let limit = std::time::Instant::now() + Duration::from_secs(30);
        let get = |outgoing: Outgoing| async move {
            let request = outgoing.request(GetBillingAccountRequest { patient_id: Uuid::nil().to_string() });
            BillingServiceClient::new(outgoing.channel()).get_billing_account(request).await.map(drop)
        };
        loop {
            let client = client(self.grpc, Duration::from_secs(5));
            let served = client.call("GetBillingAccount", TraceContext::root(), get).await;
            if served.err().is_none_or(|error| !error.is_outage()) {
                return;
            }
            assert!(std::time::Instant::now() < limit, "the service does not serve");
            smol::Timer::after(Duration::from_millis(10)).await;
        }
    }

    async fn call<T, F>(&self, attempt: impl Fn(Stub, Outgoing) -> F) -> Result<T, Code>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let stub = |outgoing: Outgoing| attempt(BillingServiceClient::new(outgoing.channel()), outgoing);
        self.client.call("test", TraceContext::root(), stub).await.map_err(|error| match error {
            CallError::Status(status) => status.code(),
            other => panic!("no answer: {other}"),
        })
    }

    pub(crate) async fn create(&self, patient_id: impl ToString, name: &str) -> Result<BillingResponse, Code> {
        let email = "jane@example.org".to_owned();
        let request = BillingRequest { patient_id: patient_id.to_string(), name: name.to_owned(), email };
        let call = |mut stub: Stub, outgoing: Outgoing| {
            let request = outgoing.request(request.clone());
            async move { Ok(stub.create_billing_account(request).await?.into_inner()) }
        };
        self.call(call).await
    }

    pub(crate) async fn get(&self, patient_id: impl ToString) -> Result<BillingAccount, Code> {
        let patient_id = patient_id.to_string();
        let call = |mut stub: Stub, outgoing: Outgoing| {
            let request = outgoing.request(GetBillingAccountRequest { patient_id: patient_id.clone() });
            async move { Ok(stub.get_billing_account(request).await?.into_inner()) }
        };
        self.call(call).await
    }

    pub(crate) async fn close(&self, patient_id: impl ToString) -> Result<BillingResponse, Code> {
        let patient_id = patient_id.to_string();
        let call = |mut stub: Stub, outgoing: Outgoing| {
            let request = outgoing.request(CloseBillingAccountRequest { patient_id: patient_id.clone() });
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
        let call = |mut stub: Stub, outgoing: Outgoing| {
            let request = outgoing.request(request.clone());
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
        let call = |mut stub: Stub, outgoing: Outgoing| {
            let request = outgoing.request(request.clone());
            async move { stub.list_transactions(request).await?.into_inner().try_collect().await }
        };
        self.call(call).await
    }

    /// The balance in one currency, which must equal the sum of the ledger.
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
