use std::{
    error::Error,
    net::Ipv4Addr,
    pin::Pin,
    time::{Duration, Instant},
};

use billing_api::{
    BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, GetBillingAccountRequest,
    ListTransactionsRequest, RecordTransactionRequest, Transaction,
    billing_service_client::BillingServiceClient,
    billing_service_server::{BillingService, BillingServiceServer},
};
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream::Stream,
    transport::{Endpoint, Server, server::TcpIncoming},
};

/// Responds at once, always with the same account.
struct Constant;

#[tonic::async_trait]
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

pub(crate) async fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, port).into())?.with_nodelay(Some(true));
    Ok(Server::builder().add_service(BillingServiceServer::new(Constant)).serve_with_incoming(incoming).await?)
}

/// The calls a second over one connection, as many as our own client has.
pub(crate) async fn call(port: u16, callers: usize, seconds: u64) -> Result<f64, Box<dyn Error>> {
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true).connect().await?;
    let begin = Instant::now();
    let end = begin + Duration::from_secs(seconds);
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let mut client = BillingServiceClient::new(channel.clone());
            tokio::spawn(async move {
                let mut count = 0_u64;
                while Instant::now() < end {
                    client.create_billing_account(request()).await?;
                    count += 1;
                }
                Ok::<_, Status>(count)
            })
        })
        .collect();
    let mut count = 0;
    for caller in callers {
        count += caller.await??;
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

fn request() -> BillingRequest {
    BillingRequest {
        patient_id: "0190163d-8694-739b-aea5-966c26f8ad90".to_owned(),
        name: "Jane Doe".to_owned(),
        email: "jane@example.org".to_owned(),
    }
}
