//! The calls: a message in, one use of the store, a message out.

use std::{pin::Pin, time::SystemTime};

use ::grpc::{Request, Response, Status};
use billing_api::{
    BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, GetBillingAccountRequest,
    ListTransactionsRequest, Money as MoneyMessage, RecordTransactionRequest, Transaction, TransactionType,
    billing_service_server::BillingService,
};
use futures_lite::{Stream, stream};
use telemetry::TraceContext;
use uuid::Uuid;

use crate::{
    account::{Account, Holder, InvalidField, parse_patient_id},
    ledger::{Entry, Kind, Money, Recorded},
    status::Failure,
    store::{Recording, Store},
};

/// Entries that are read at once for a list, and therefore what one costs in memory however long it is.
const PAGE: i64 = 200;

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
            Recording::BalanceOutOfRange => return Err(Failure::BalanceOutOfRange.into()),
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
        let left = (limit != 0).then_some(i64::from(limit));
        let (store, page) = (self.store.clone(), Vec::new().into_iter());
        let listing = Listing { store, trace, patient_id, after: after_position, left, page, last: false };
        Ok(Response::new(Box::pin(listing.stream())))
    }
}

/// A list on its way to its reader.
///
/// It is read page by page, and the next page only when the reader has room for it: a slow reader takes its time, costs one
/// page of memory and no connection to the database, and whatever keeps a page from being read ends the stream with an error
/// behind the entries before it. Only the end of the ledger, or of what was asked for, ends it well.
struct Listing {
    store: Store,
    trace: TraceContext,
    patient_id: Uuid,
    after: i64,
    /// Entries that are still wanted; none if all are.
    left: Option<i64>,
    page: std::vec::IntoIter<Recorded>,
    /// Whether `page` is the last one.
    last: bool,
}

impl Listing {
    fn stream(self) -> impl Stream<Item = Result<Transaction, Status>> + Send {
        stream::try_unfold(self, |mut listing| async move {
            let next = listing.next().await?;
            Ok(next.map(|recorded| (transaction(recorded), listing)))
        })
    }

    async fn next(&mut self) -> Result<Option<Recorded>, Status> {
        if self.page.len() == 0 && !self.last {
            let wanted = self.left.map_or(PAGE, |left| left.min(PAGE));
            let (store, trace, patient_id, after) = (self.store.clone(), self.trace, self.patient_id, self.after);
            let list = async move { trace.scope(store.list(patient_id, after, wanted)).await };
            // A task of its own, which goes on although nobody polls the stream: tonic hands over what it has when a page is
            // not there yet, and comes back when the reader has taken it. A connection is not held for that long.
            let page = runtime::spawn(list).await.map_err(Failure::from)?;
            let count = page.len() as i64;
            self.left = self.left.map(|left| left - count);
            self.last = count < wanted || self.left == Some(0);
            self.after = page.last().map_or(self.after, |last| last.position);
            self.page = page.into_iter();
        }
        Ok(self.page.next())
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
        recorded_at: Some(SystemTime::from(recorded.at).into()),
        position: recorded.position,
    }
}
