//! The gRPC methods: convert a message, use the store, convert the result.

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
    ledger::{EntryType, LedgerEntry, Money, NewEntry},
    status::CallFailure,
    store::{RecordOutcome, Store},
};

/// Entries that one statement reads. It bounds the memory of a stream, however long the list is.
const PAGE: i64 = 200;

/// The gRPC service.
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
        let holder = Holder::parse(&patient_id, name, email).map_err(CallFailure::from)?;
        let (account, new) = self.store.open(&holder).await.map_err(CallFailure::from)?;
        if new {
            tracing::info!(patient_id = %holder.patient_id, "account opened");
        }
        Ok(Response::new(response(account)))
    }

    async fn get_billing_account(
        &self,
        request: Request<GetBillingAccountRequest>,
    ) -> Result<Response<BillingAccount>, Status> {
        let patient_id = parse_patient_id(&request.into_inner().patient_id).map_err(CallFailure::from)?;
        let found = self.store.find(patient_id).await.map_err(CallFailure::from)?;
        let (account, balances) = found.ok_or(CallFailure::NoAccount)?;
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
        let deadline = ::grpc::deadline(&request);
        let patient_id = parse_patient_id(&request.into_inner().patient_id).map_err(CallFailure::from)?;
        let closed = self.store.close(patient_id, deadline).await.map_err(CallFailure::from)?;
        let account = closed.ok_or(CallFailure::NoAccount)?;
        tracing::info!(%patient_id, "account closed");
        Ok(Response::new(response(account)))
    }

    async fn record_transaction(
        &self,
        request: Request<RecordTransactionRequest>,
    ) -> Result<Response<Transaction>, Status> {
        let deadline = ::grpc::deadline(&request);
        let entry = entry(request.into_inner()).map_err(CallFailure::from)?;
        let recorded = match self.store.record(&entry, deadline).await.map_err(CallFailure::from)? {
            RecordOutcome::Recorded(recorded) => recorded,
            RecordOutcome::NoAccount => return Err(CallFailure::NoAccount.into()),
            RecordOutcome::Closed => return Err(CallFailure::Closed.into()),
            RecordOutcome::OtherEntry => return Err(CallFailure::OtherEntry.into()),
            RecordOutcome::BalanceOutOfRange => return Err(CallFailure::BalanceOutOfRange.into()),
        };
        Ok(Response::new(transaction(recorded)))
    }

    async fn list_transactions(
        &self,
        request: Request<ListTransactionsRequest>,
    ) -> Result<Response<Self::ListTransactionsStream>, Status> {
        let trace = ::grpc::trace(&request);
        let ListTransactionsRequest { patient_id, after_position, limit } = request.into_inner();
        let patient_id = parse_patient_id(&patient_id).map_err(CallFailure::from)?;
        self.store.find(patient_id).await.map_err(CallFailure::from)?.ok_or(CallFailure::NoAccount)?;
        let remaining = (limit != 0).then_some(i64::from(limit));
        let (store, page) = (self.store.clone(), Vec::new().into_iter());
        let listing = Listing { store, trace, patient_id, after: after_position, remaining, page, is_last: false };
        Ok(Response::new(Box::pin(listing.stream())))
    }
}

/// The stream of a list.
///
/// It is read page by page, and the next page only when the client's window has room: a slow client costs one page of memory and
/// no database connection. If a page cannot be read, the stream ends with an error after the entries before it; it ends with
/// OK only at the end of the ledger or the limit.
struct Listing {
    store: Store,
    trace: TraceContext,
    patient_id: Uuid,
    after: i64,
    /// Entries up to the limit; none if there is no limit.
    remaining: Option<i64>,
    page: std::vec::IntoIter<LedgerEntry>,
    /// Whether `page` is the last one.
    is_last: bool,
}

impl Listing {
    fn stream(self) -> impl Stream<Item = Result<Transaction, Status>> + Send {
        stream::try_unfold(self, |mut listing| async move {
            let next = listing.next().await?;
            Ok(next.map(|recorded| (transaction(recorded), listing)))
        })
    }

    async fn next(&mut self) -> Result<Option<LedgerEntry>, Status> {
        if self.page.len() == 0 && !self.is_last {
            let limit = self.remaining.map_or(PAGE, |remaining| remaining.min(PAGE));
            let (store, trace, patient_id, after) = (self.store.clone(), self.trace, self.patient_id, self.after);
            let list = async move { trace.scope(store.list(patient_id, after, limit)).await };
            // In a task of its own: while the client does not read, nobody polls the stream, and a read within it would hold its
            // database connection for that long.
            let page = runtime::spawn(list).await.map_err(CallFailure::from)?;
            let count = page.len() as i64;
            self.remaining = self.remaining.map(|remaining| remaining - count);
            self.is_last = count < limit || self.remaining == Some(0);
            self.after = page.last().map_or(self.after, |last| last.position);
            self.page = page.into_iter();
        }
        Ok(self.page.next())
    }
}

fn entry(request: RecordTransactionRequest) -> Result<NewEntry, InvalidField> {
    let patient_id = parse_patient_id(&request.patient_id)?;
    let entry_type = match request.r#type() {
        TransactionType::Charge => EntryType::Charge,
        TransactionType::Payment => EntryType::Payment,
        TransactionType::Refund => EntryType::Refund,
        TransactionType::Unspecified => {
            return Err(InvalidField { field: "type", why: "must be CHARGE, PAYMENT or REFUND" });
        }
    };
    let MoneyMessage { amount, currency } = request.amount.unwrap_or_default();
    NewEntry::parse(patient_id, request.transaction_id, entry_type, Money { amount, currency })
}

fn response(account: Account) -> BillingResponse {
    BillingResponse { account_id: account.id.to_string(), status: account.status.name().to_owned() }
}

fn money(Money { amount, currency }: Money) -> MoneyMessage {
    MoneyMessage { amount, currency }
}

fn transaction(recorded: LedgerEntry) -> Transaction {
    let entry_type = match recorded.entry_type {
        EntryType::Charge => TransactionType::Charge,
        EntryType::Payment => TransactionType::Payment,
        EntryType::Refund => TransactionType::Refund,
    };
    Transaction {
        transaction_id: recorded.transaction_id,
        r#type: entry_type.into(),
        amount: Some(money(recorded.amount)),
        recorded_at: Some(SystemTime::from(recorded.at).into()),
        position: recorded.position,
    }
}
