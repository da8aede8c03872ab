//! Unary calls a second through the bridge, as `just bench` compares them with tonic on plain tokio:
//! `unary serve PORT` in one process, `unary call PORT CALLERS SECONDS` in another.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use billing_api::{
    BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, DESCRIPTORS, GetBillingAccountRequest,
    ListTransactionsRequest, RecordTransactionRequest, Transaction,
    billing_service_client::BillingServiceClient,
    billing_service_server::{BillingService, BillingServiceServer},
};
use config::HostPort;
use futures_lite::Stream;
use grpc::{Attempt, Client, ClientSettings, Health, Request, Response, Routes, Server, ServerSettings, Status};
use runtime::Shutdown;
use telemetry::TraceContext;

/// Threads of each side, as the services have them.
const THREADS: usize = 1;

/// Responds with a constant.
struct Constant;

#[grpc::async_trait]
impl BillingService for Constant {
    type ListTransactionsStream = Pin<Box<dyn Stream<Item = Result<Transaction, Status>> + Send>>;

    async fn create_billing_account(&self, _: Request<BillingRequest>) -> Result<Response<BillingResponse>, Status> {
        Ok(Response::new(BillingResponse {
            account_id: "0190163d-8694-739b-aea5-966c26f8ad91".to_owned(),
            status: "ACTIVE".to_owned(),
        }))
    }

    async fn get_billing_account(
        &self,
        _: Request<GetBillingAccountRequest>,
    ) -> Result<Response<BillingAccount>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn close_billing_account(
        &self,
        _: Request<CloseBillingAccountRequest>,
    ) -> Result<Response<BillingResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn record_transaction(&self, _: Request<RecordTransactionRequest>) -> Result<Response<Transaction>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn list_transactions(
        &self,
        _: Request<ListTransactionsRequest>,
    ) -> Result<Response<Self::ListTransactionsStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| arguments.get(index).and_then(|text| text.parse::<u64>().ok()).expect("a number");
    match arguments.first().map(String::as_str) {
        Some("serve") => runtime::block_on(THREADS, serve(number(1) as u16)),
        Some("call") => println!("{:.0}", runtime::block_on(THREADS, call(number(1) as u16, number(2), number(3)))),
        _ => panic!("usage: unary serve PORT | unary call PORT CALLERS SECONDS"),
    }
}

async fn serve(port: u16) {
    let settings = ServerSettings {
        address: ([127, 0, 0, 1], port).into(),
        drain: Duration::from_secs(1),
        tls: None,
        max_connection_age: None,
    };
    let server = Server::bind(&settings).expect("the port is free");
    let shutdown = Shutdown::new();
    shutdown.trigger_on_signals().expect("signals can be handled");
    let health = Health::not_serving("BillingService").await;
    let routes = Routes::new(BillingServiceServer::new(Constant));
    server.serve(routes, health, DESCRIPTORS, shutdown).await.expect("it serves until the shutdown");
}

/// Calls a second, over one connection.
async fn call(port: u16, callers: u64, seconds: u64) -> f64 {
    let address = HostPort { host: "127.0.0.1".to_owned(), port };
    let settings = ClientSettings {
        peer: "unary",
        service: "BillingService",
        address,
        deadline: Duration::from_secs(5),
        tls: None,
    };
    let client = std::sync::Arc::new(Client::new(settings).expect("the address is one"));
    let begin = Instant::now();
    let end = begin + Duration::from_secs(seconds);
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let client = client.clone();
            runtime::spawn(async move {
                let mut count = 0_u64;
                while Instant::now() < end {
                    let call = |attempt: Attempt| {
                        let request = attempt.request(request());
                        async move {
                            let mut stub = BillingServiceClient::new(attempt.channel());
                            stub.create_billing_account(request).await
                        }
                    };
                    client.call("CreateBillingAccount", TraceContext::root(), call).await.expect("an answer");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for caller in callers {
        count += caller.await;
    }
    count as f64 / begin.elapsed().as_secs_f64()
}

fn request() -> BillingRequest {
    BillingRequest {
        patient_id: "0190163d-8694-739b-aea5-966c26f8ad90".to_owned(),
        name: "Jane Doe".to_owned(),
        email: "jane@example.org".to_owned(),
    }
}
