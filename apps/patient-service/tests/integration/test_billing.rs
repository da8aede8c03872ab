//! A billing service of the test, whose behaviour the test chooses.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::SystemTime,
};

use billing_api::{
    BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, GetBillingAccountRequest,
    ListTransactionsRequest, Money, RecordTransactionRequest, Transaction, TransactionType,
    billing_service_server::BillingService,
};
use futures_lite::{Stream, StreamExt as _, stream};
use grpc::{Request, Response, Status};

/// Behaviour of the billing service of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Behaviour {
    Normal,
    /// It answers UNAVAILABLE.
    Unavailable,
    /// It never answers.
    Hangs,
    /// It executes the call and never answers.
    HangsAfterExecution,
    /// It is an original's, which opens accounts and has no other method.
    Original,
    /// It answers UNIMPLEMENTED to everything, as a proxy without a route to it.
    Unrouted,
    /// It answers UNKNOWN to everything, as grpc-java does for an uncaught exception.
    Faulty,
    /// It rejects to open an account that is open, and to close one that is closed or has a balance.
    Strict,
    /// Its lists have transactions of a type that is not in the contract.
    UnknownType,
    /// Its lists never end.
    Endless,
    /// Its lists end with an error after the first entry.
    BreaksOff,
    /// Its lists stall after the first entry.
    Stalls,
}

const BEHAVIOURS: [Behaviour; 12] = [
    Behaviour::Normal,
    Behaviour::Unavailable,
    Behaviour::Hangs,
    Behaviour::HangsAfterExecution,
    Behaviour::Original,
    Behaviour::Unrouted,
    Behaviour::Faulty,
    Behaviour::Strict,
    Behaviour::UnknownType,
    Behaviour::Endless,
    Behaviour::BreaksOff,
    Behaviour::Stalls,
];

/// Accounts with their ledgers, by patient.
type Accounts = HashMap<String, (BillingAccount, Vec<Transaction>)>;

/// The billing service of a test, with accounts in memory.
#[derive(Clone, Default)]
pub(crate) struct TestBilling {
    behaviour: Arc<AtomicU8>,
    accounts: Arc<Mutex<Accounts>>,
    /// `tracestate` and `baggage` of each call to open an account.
    propagated: Arc<Mutex<Vec<[Option<String>; 2]>>>,
}

impl TestBilling {
    pub(crate) fn propagated(&self) -> Vec<[Option<String>; 2]> {
        self.propagated.lock().unwrap().clone()
    }

    pub(crate) fn set(&self, behaviour: Behaviour) {
        self.behaviour.store(behaviour as u8, Ordering::SeqCst);
    }

    /// ACTIVE, CLOSED, or none if there is no account.
    pub(crate) fn status(&self, patient_id: &str) -> Option<String> {
        self.accounts.lock().unwrap().get(patient_id).map(|(account, _)| account.status.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.accounts.lock().unwrap().len()
    }

    /// As [`with`](Self::with), for a method that the originals do not have.
    async fn with_more<T>(&self, work: impl FnOnce(&mut Accounts) -> Result<T, Status>) -> Result<Response<T>, Status> {
        if self.behaviour() == Behaviour::Original {
            return Err(Status::unimplemented("Method not found"));
        }
        self.with(work).await
    }

    fn behaviour(&self) -> Behaviour {
        BEHAVIOURS[usize::from(self.behaviour.load(Ordering::SeqCst))]
    }

    async fn with<T>(&self, work: impl FnOnce(&mut Accounts) -> Result<T, Status>) -> Result<Response<T>, Status> {
        let behaviour = self.behaviour();
        if behaviour == Behaviour::Unavailable {
            return Err(Status::unavailable("simulated by the test"));
        }
        if behaviour == Behaviour::Unrouted {
            return Err(Status::unimplemented("simulated by the test"));
        }
        if behaviour == Behaviour::Faulty {
            return Err(Status::unknown("simulated by the test"));
        }
        if behaviour == Behaviour::Hangs {
            std::future::pending::<()>().await;
        }
        let result = work(&mut self.accounts.lock().unwrap());
        if behaviour == Behaviour::HangsAfterExecution {
            std::future::pending::<()>().await;
        }
        result.map(Response::new)
    }
}

#[grpc::async_trait]
impl BillingService for TestBilling {
    type ListTransactionsStream = Pin<Box<dyn Stream<Item = Result<Transaction, Status>> + Send>>;

    async fn create_billing_account(
        &self,
        request: Request<BillingRequest>,
    ) -> Result<Response<BillingResponse>, Status> {
        let header = |name| request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
        self.propagated.lock().unwrap().push(["tracestate", "baggage"].map(header));
        let request = request.into_inner();
        assert!(!request.name.is_empty() && !request.email.is_empty(), "name and email are sent");
        let open = |accounts: &mut Accounts| {
            if self.behaviour() == Behaviour::Strict && accounts.contains_key(&request.patient_id) {
                return Err(Status::already_exists("open"));
            }
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
            if self.behaviour() == Behaviour::Strict && (account.status == "CLOSED" || !account.balances.is_empty()) {
                return Err(Status::failed_precondition("closed, or with a balance"));
            }
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
            let broken = Err(Status::unavailable("simulated by the test"));
            Ok::<Self::ListTransactionsStream, _>(match self.behaviour() {
                Behaviour::BreaksOff => Box::pin(entries.take(1).chain(stream::once(broken))),
                Behaviour::UnknownType => {
                    Box::pin(entries.map(|entry| entry.map(|entry| Transaction { r#type: 7, ..entry })))
                }
                Behaviour::Endless => {
                    let entry = ledger.first().cloned().unwrap_or_default();
                    Box::pin(entries.chain(stream::repeat(entry).map(Ok)))
                }
                Behaviour::Stalls => Box::pin(entries.take(1).chain(stream::pending())),
                _ => Box::pin(entries),
            })
        })
        .await
    }
}
