//! The calls: a message in, one use of the store, a message out.

use std::{pin::Pin, time::Duration};

use ::grpc::{Request, Response, Status, billing::billing_service_server::BillingService};
use codec::{
    billing::{
        BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, GetBillingAccountRequest,
        ListTransactionsRequest, Money as MoneyMessage, RecordTransactionRequest, Transaction, TransactionType,
    },
    event::timestamp,
};
use futures_lite::Stream;
use smol::channel::{self, Sender};
use uuid::Uuid;

use crate::{
    account::{Account, Holder, InvalidField, parse_patient_id},
    ledger::{Entry, Kind, Money, Recorded},
    status::Failure,
    store::{Recording, Store},
};

/// Entries that are read at once for a list.
const PAGE: i64 = 500;
/// Entries that wait for a slow client.
const WAITING: usize = 500;
/// A client that takes no entry for this long has its list broken off.
const PATIENCE: Duration = Duration::from_secs(10);

/// The billing service's calls.
#[derive(Clone, Debug)]
pub(crate) struct Billing {
    store: Store,
}

impl Billing {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }
}

#[::grpc::async_trait]
impl BillingService for Billing {
    type ListTransactionsStream = Pin<Box<dyn Stream<Item = Result<Transaction, Status>> + Send>>;

    async fn create_billing_account(
        &self,
        request: Request<BillingRequest>,
    ) -> Result<Response<BillingResponse>, Status> {
        let BillingRequest { patient_id, name, email } = request.into_inner();
        let holder = Holder::parse(&patient_id, name, email).map_err(Failure::from)?;
        let (account, new) = self.store.open(&holder).await.map_err(Failure::from)?;
        if new {
            tracing::info!(patient_id = %holder.patient_id, "account opened");
        }
        Ok(Response::new(response(account)))
    }

    async fn get_billing_account(
        &self,
        request: Request<GetBillingAccountRequest>,
    ) -> Result<Response<BillingAccount>, Status> {
        let patient_id = parse_patient_id(&request.into_inner().patient_id).map_err(Failure::from)?;
        let found = self.store.find(patient_id).await.map_err(Failure::from)?;
        let (account, balances) = found.ok_or(Failure::NoAccount)?;
        Ok(Response::new(BillingAccount {
            account_id: account.id.to_string(),
            status: account.status.name().to_owned(),
            balances: balances.into_iter().map(money).collect(),
        }))
    }

    async fn close_billing_account(
        &self,
        request: Request<CloseBillingAccountRequest>,
    ) -> Result<Response<BillingResponse>, Status> {
        let patient_id = parse_patient_id(&request.into_inner().patient_id).map_err(Failure::from)?;
        let closed = self.store.close(patient_id).await.map_err(Failure::from)?;
        let account = closed.ok_or(Failure::NoAccount)?;
        tracing::info!(%patient_id, "account closed");
        Ok(Response::new(response(account)))
    }

    async fn record_transaction(
        &self,
        request: Request<RecordTransactionRequest>,
    ) -> Result<Response<Transaction>, Status> {
        let entry = entry(request.into_inner()).map_err(Failure::from)?;
        let recorded = match self.store.record(&entry).await.map_err(Failure::from)? {
            Recording::Recorded(recorded) => recorded,
            Recording::NoAccount => return Err(Failure::NoAccount.into()),
            Recording::Closed => return Err(Failure::Closed.into()),
            Recording::OtherEntry => return Err(Failure::OtherEntry.into()),
        };
        Ok(Response::new(transaction(recorded)))
    }

    async fn list_transactions(
        &self,
        request: Request<ListTransactionsRequest>,
    ) -> Result<Response<Self::ListTransactionsStream>, Status> {
        let trace = ::grpc::trace(&request);
        let ListTransactionsRequest { patient_id, after_position, limit } = request.into_inner();
        let patient_id = parse_patient_id(&patient_id).map_err(Failure::from)?;
        self.store.find(patient_id).await.map_err(Failure::from)?.ok_or(Failure::NoAccount)?;
        let left = if limit == 0 { i64::MAX } else { i64::from(limit) };
        let (sender, receiver) = channel::bounded(WAITING);
        let send = send_list(self.store.clone(), patient_id, after_position, left, sender);
        runtime::spawn(trace.scope(send)).detach();
        Ok(Response::new(Box::pin(receiver)))
    }
}

/// Sends a list page by page, as fast as its reader takes it.
async fn send_list(
    store: Store,
    patient_id: Uuid,
    mut after: i64,
    mut left: i64,
    sender: Sender<Result<Transaction, Status>>,
) {
    while left > 0 {
        let page = match store.list(patient_id, after, left.min(PAGE)).await {
            Ok(page) => page,
            Err(error) => {
                // The reader may be gone.
                let _ = sender.try_send(Err(Failure::from(error).into()));
                return;
            }
        };
        let Some(last) = page.last() else { return };
        after = last.position;
        left -= page.len() as i64;
        for recorded in page {
            let sending = runtime::within(PATIENCE, sender.send(Ok(transaction(recorded))));
            if !matches!(sending.await, Ok(Ok(()))) {
                return;
            }
        }
    }
}

fn entry(request: RecordTransactionRequest) -> Result<Entry, InvalidField> {
    let patient_id = parse_patient_id(&request.patient_id)?;
    let kind = match request.r#type() {
        TransactionType::Charge => Kind::Charge,
        TransactionType::Payment => Kind::Payment,
        TransactionType::Refund => Kind::Refund,
        TransactionType::Unspecified => {
            return Err(InvalidField { field: "type", why: "must be CHARGE, PAYMENT or REFUND" });
        }
    };
    let MoneyMessage { amount, currency } = request.amount.unwrap_or_default();
    Entry::parse(patient_id, request.transaction_id, kind, Money { amount, currency })
}

fn response(account: Account) -> BillingResponse {
    BillingResponse { account_id: account.id.to_string(), status: account.status.name().to_owned() }
}

fn money(Money { amount, currency }: Money) -> MoneyMessage {
    MoneyMessage { amount, currency }
}

fn transaction(recorded: Recorded) -> Transaction {
    let kind = match recorded.kind {
        Kind::Charge => TransactionType::Charge,
        Kind::Payment => TransactionType::Payment,
        Kind::Refund => TransactionType::Refund,
    };
    Transaction {
        transaction_id: recorded.transaction_id,
        r#type: kind.into(),
        amount: Some(money(recorded.amount)),
        recorded_at: Some(timestamp(recorded.at)),
        position: recorded.position,
    }
}
