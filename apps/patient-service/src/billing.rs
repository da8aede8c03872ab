//! A client of the billing service. An account is a type of this service; transactions and amounts are those of the contract.

use std::time::Duration;

use billing_api::{
    BillingRequest, CloseBillingAccountRequest, GetBillingAccountRequest, ListTransactionsRequest, Money,
    RecordTransactionRequest, Transaction, TransactionType, billing_service_client::BillingServiceClient,
};
use futures_lite::StreamExt as _;
use grpc::{Attempt, CallError, Client, ClientError, ClientSettings};
use telemetry::TraceContext;
use uuid::Uuid;

/// A billing account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Billing's id of it.
    pub id: String,
    /// ACTIVE or CLOSED.
    pub status: String,
}

/// A client of the billing service.
#[derive(Debug)]
pub struct Billing {
    client: Client,
    deadline: Duration,
}

impl Billing {
    /// A client that connects when it is first used.
    ///
    /// # Errors
    /// If the address is not a valid URI, or the files for TLS are not valid.
    pub fn new(settings: ClientSettings) -> Result<Self, ClientError> {
        let deadline = settings.deadline;
        let client = Client::new(settings)?;
        Ok(Self { client, deadline })
    }

    /// Time for a call with its retries.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether the circuit breaker is open: the last calls had no answer.
    pub fn is_unavailable(&self) -> bool {
        self.client.is_breaker_open()
    }

    /// What is wrong with it: the last calls had no answer, or all were answered with an error of its own.
    pub fn problem(&self) -> Option<String> {
        let address = self.client.address();
        if self.is_unavailable() {
            return Some(format!("the billing service does not answer at {address}"));
        }
        let fault = self.client.fault();
        fault.map(|error| format!("the billing service at {address} answers every call with an error: {error}"))
    }

    /// Opens the account of a patient, or returns the existing one.
    ///
    /// # Errors
    /// If billing fails or does not answer in time. It may have opened the account all the same.
    pub async fn open(
        &self,
        patient_id: Uuid,
        name: &str,
        email: &str,
        trace: TraceContext,
    ) -> Result<Account, CallError> {
        let request =
            BillingRequest { patient_id: patient_id.to_string(), name: name.to_owned(), email: email.to_owned() };
        let open = |attempt: Attempt| {
            let request = attempt.request(request.clone());
            async move {
                let mut stub = BillingServiceClient::new(attempt.channel());
                Ok(stub.create_billing_account(request).await?.into_inner())
            }
        };
        let response = self.client.call("CreateBillingAccount", trace, open).await?;
        Ok(Account { id: response.account_id, status: response.status })
    }

    /// Closes the account of a patient.
    ///
    /// # Errors
    /// If there is none (`NOT_FOUND`), or billing fails or does not answer in time.
    pub async fn close(&self, patient_id: Uuid, trace: TraceContext) -> Result<(), CallError> {
        let close = |attempt: Attempt| {
            let request = attempt.request(CloseBillingAccountRequest { patient_id: patient_id.to_string() });
            async move {
                let mut stub = BillingServiceClient::new(attempt.channel());
                stub.close_billing_account(request).await
            }
        };
        self.client.call("CloseBillingAccount", trace, close).await.map(drop)
    }

    /// The account of a patient with its balances by currency.
    ///
    /// # Errors
    /// If there is none (`NOT_FOUND`), or billing fails or does not answer in time.
    pub async fn account(&self, patient_id: Uuid, trace: TraceContext) -> Result<(Account, Vec<Money>), CallError> {
        let get = |attempt: Attempt| {
            let request = attempt.request(GetBillingAccountRequest { patient_id: patient_id.to_string() });
            async move {
                let mut stub = BillingServiceClient::new(attempt.channel());
                Ok(stub.get_billing_account(request).await?.into_inner())
            }
        };
        let found = self.client.call("GetBillingAccount", trace, get).await?;
        Ok((Account { id: found.account_id, status: found.status }, found.balances))
    }

    /// Enters a transaction into the ledger of a patient's account.
    ///
    /// # Errors
    /// If billing rejects it, fails, or does not answer in time.
    pub async fn record(
        &self,
        patient_id: Uuid,
        transaction_id: &str,
        kind: TransactionType,
        amount: Money,
        trace: TraceContext,
    ) -> Result<Transaction, CallError> {
        let request = RecordTransactionRequest {
            patient_id: patient_id.to_string(),
            transaction_id: transaction_id.to_owned(),
            r#type: kind.into(),
            amount: Some(amount),
        };
        let record = |attempt: Attempt| {
            let request = attempt.request(request.clone());
            async move {
                let mut stub = BillingServiceClient::new(attempt.channel());
                Ok(stub.record_transaction(request).await?.into_inner())
            }
        };
        self.client.call("RecordTransaction", trace, record).await
    }

    /// At most `limit` entries of the ledger of a patient's account, after a position.
    ///
    /// # Errors
    /// If there is no account (`NOT_FOUND`), or billing fails or does not answer in time.
    pub async fn transactions(
        &self,
        patient_id: Uuid,
        after_position: i64,
        limit: u32,
        trace: TraceContext,
    ) -> Result<Vec<Transaction>, CallError> {
        let request = ListTransactionsRequest { patient_id: patient_id.to_string(), after_position, limit };
        let list = |attempt: Attempt| {
            let request = attempt.request(request.clone());
            async move {
                let mut stub = BillingServiceClient::new(attempt.channel());
                let entries = stub.list_transactions(request).await?.into_inner();
                // One more than billing was asked for, so that a complete list is read to its end, and an endless one is not.
                let mut entries: Vec<_> = entries.take(limit as usize + 1).try_collect().await?;
                entries.truncate(limit as usize);
                Ok(entries)
            }
        };
        self.client.call("ListTransactions", trace, list).await
    }
}
