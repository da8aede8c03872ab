//! Our client against an original's billing service, which opens accounts and has no other call.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use billing_api::{
    BillingRequest, BillingResponse, CloseBillingAccountRequest, DESCRIPTORS, GetBillingAccountRequest,
    ListTransactionsRequest, RecordTransactionRequest, billing_service_client::BillingServiceClient,
};
use config::HostPort;
use futures_lite::StreamExt as _;
use grpc::{
    Attempt, CallError, Client, ClientSettings, Code, FailureKind, Health, Request, Response, Routes, Server,
    ServerSettings, Status,
};
use original::billing_service_server::{BillingService, BillingServiceServer};
use runtime::Shutdown;
use telemetry::TraceContext;

#[allow(unreachable_pub, reason = "it is generated")]
mod original {
    include!(concat!(env!("OUT_DIR"), "/original/_.rs"));
}

struct Original;

#[grpc::async_trait]
impl BillingService for Original {
    async fn create_billing_account(
        &self,
        _: Request<original::BillingRequest>,
    ) -> Result<Response<original::BillingResponse>, Status> {
        Ok(Response::new(original::BillingResponse { account_id: "12345".to_owned(), status: "ACTIVE".to_owned() }))
    }
}

fn client(address: SocketAddr) -> Client {
    let address = HostPort { host: address.ip().to_string(), port: address.port() };
    let deadline = Duration::from_secs(10);
    Client::new(ClientSettings { peer: "original", service: "BillingService", address, deadline, tls: None }).unwrap()
}

async fn create(client: &Client) -> Result<BillingResponse, CallError> {
    let call = |attempt: Attempt| async move {
        let request = attempt.request(BillingRequest::default());
        Ok(BillingServiceClient::new(attempt.channel()).create_billing_account(request).await?.into_inner())
    };
    client.call("CreateBillingAccount", TraceContext::root(), call).await
}

/// Each method that an original does not have.
async fn others(client: &Client) -> Vec<CallError> {
    let trace = TraceContext::root();
    let get = |attempt: Attempt| async move {
        let request = attempt.request(GetBillingAccountRequest::default());
        BillingServiceClient::new(attempt.channel()).get_billing_account(request).await.map(drop)
    };
    let close = |attempt: Attempt| async move {
        let request = attempt.request(CloseBillingAccountRequest::default());
        BillingServiceClient::new(attempt.channel()).close_billing_account(request).await.map(drop)
    };
    let record = |attempt: Attempt| async move {
        let request = attempt.request(RecordTransactionRequest::default());
        BillingServiceClient::new(attempt.channel()).record_transaction(request).await.map(drop)
    };
    let list = |attempt: Attempt| async move {
        let request = attempt.request(ListTransactionsRequest::default());
        let mut list = BillingServiceClient::new(attempt.channel()).list_transactions(request).await?.into_inner();
        while list.next().await.transpose()?.is_some() {}
        Ok(())
    };
    [
        client.call("GetBillingAccount", trace, get).await,
        client.call("CloseBillingAccount", trace, close).await,
        client.call("RecordTransaction", trace, record).await,
        client.call("ListTransactions", trace, list).await,
    ]
    .map(Result::unwrap_err)
    .into()
}

#[test]
fn methods_that_a_peer_does_not_have_are_no_outage() {
    runtime::block_on(2, async {
        let settings = ServerSettings {
            address: ([127, 0, 0, 1], 0).into(),
            drain: Duration::from_secs(5),
            tls: None,
            max_connection_age: None,
        };
        let server = Server::bind(&settings).unwrap();
        let (address, shutdown) = (server.address(), Shutdown::new());
        let health = Health::not_serving("BillingService").await;
        let routes = Routes::new(BillingServiceServer::new(Original));
        let serving = runtime::spawn(server.serve(routes, health, DESCRIPTORS, shutdown.clone()));
        let client = client(address);
        for _ in 0..10 {
            for error in others(&client).await {
                assert_eq!((error.code(), error.kind()), (Some(Code::Unimplemented), FailureKind::Unsupported));
            }
            assert_eq!(create(&client).await.unwrap().account_id, "12345");
            assert!(!client.is_breaker_open());
        }
        shutdown.trigger();
        serving.await.unwrap();
    });
}

#[test]
fn an_unreachable_peer_is_reported_with_the_cause() {
    runtime::block_on(2, async {
        // A port without a listener.
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let started = Instant::now();
        let error = create(&client(nobody)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (FailureKind::Unavailable, "unavailable"));
        assert!(error.to_string().contains("Connection refused"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    });
}
