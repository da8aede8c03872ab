//! Handlers of `/patients/{id}/billing`, by calls of the billing service.

use grpc::Code;
use tide::{Response, StatusCode};
use uuid::Uuid;
use web::{Problem, Query, json, read_json};

use super::{
    Request,
    body::{AccountBody, StatementBody, TransactionBody, TransactionInput},
    patients::patient_id,
    problem::of_call,
};
use billing_api::Money;

/// Transactions in a list: the default and the maximum.
const LIMIT: (u32, u32) = (100, 1000);

/// Read the billing account
///
/// PENDING until the billing service has opened it.
#[utoipa::path(
    get, path = "/patients/{id}/billing", tag = "billing",
    params(("id" = Uuid, Path, description = "Id of the patient")),
    responses(
        (status = 200, description = "The account with its balances", body = StatementBody),
        (status = 400, response = super::responses::BadRequest),
        (status = 404, response = super::responses::NotFound),
        (status = 501, response = super::responses::NotImplemented),
        (status = 503, response = super::responses::Unavailable),
    )
)]
pub(super) async fn account(request: Request) -> Result<Response, Problem> {
    let id = existing_patient(&request).await?;
    let found = match request.state().billing().account(id, web::trace(&request)).await {
        Ok((account, balances)) => Some((account, balances)),
        Err(error) if error.code() == Some(Code::NotFound) => None,
        Err(error) => return Err(of_call(&error)),
    };
    let (account, balances) = found.unzip();
    let balances = balances.unwrap_or_default().into_iter().map(Into::into).collect();
    Ok(json(StatusCode::Ok, &StatementBody { account: AccountBody::from(account.as_ref()), balances }))
}

/// Enter a transaction into the ledger
///
/// A repeated transaction is entered once.
#[utoipa::path(
    post, path = "/patients/{id}/billing/transactions", tag = "billing", request_body = TransactionInput,
    params(("id" = Uuid, Path, description = "Id of the patient")),
    responses(
        (status = 201, description = "Entered, by this or an earlier request", body = TransactionBody),
        (status = 400, response = super::responses::BadRequest),
        (status = 404, response = super::responses::NotFound),
        (status = 409, response = super::responses::Conflict),
        (status = 413, response = super::responses::TooLarge),
        (status = 415, response = super::responses::UnsupportedMediaType),
        (status = 501, response = super::responses::NotImplemented),
        (status = 503, response = super::responses::Unavailable),
    )
)]
pub(super) async fn record(mut request: Request) -> Result<Response, Problem> {
    let trace = web::trace(&request);
    let app = request.state().clone();
    let id = patient_id(&request)?;
    let TransactionInput { transaction_id, r#type, amount, currency } = read_json(&mut request, app.limits()).await?;
    app.registry().find(id).await?;
    let amount = Money { amount, currency };
    let recorded = app.billing().record(id, &transaction_id, r#type.into(), amount, trace).await;
    let recorded = recorded.map_err(|error| of_call(&error))?;
    Ok(json(StatusCode::Created, &TransactionBody::try_from(recorded)?))
}

/// List the ledger's transactions
///
/// In the order in which they were entered. If there are more than `limit`, the header `Link` leads to the next ones.
#[utoipa::path(
    get, path = "/patients/{id}/billing/transactions", tag = "billing",
    params(
        ("id" = Uuid, Path, description = "Id of the patient"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Maximum number of transactions; 100 by default"),
        ("cursor" = Option<i64>, Query, minimum = 0, description = "From the Link of an earlier response"),
    ),
    responses(
        (status = 200, description = "The transactions", body = [TransactionBody], headers(
            ("Link" = Option<String>, description = "The next transactions, rel=\"next\""))),
        (status = 400, response = super::responses::BadRequest),
        (status = 404, response = super::responses::NotFound),
        (status = 501, response = super::responses::NotImplemented),
        (status = 503, response = super::responses::Unavailable),
    )
)]
pub(super) async fn list(request: Request) -> Result<Response, Problem> {
    let mut query = Query::of(&request);
    let limit = query.number("limit", 1..=LIMIT.1).unwrap_or(LIMIT.0);
    let after = query.number("cursor", 0..=i64::MAX).unwrap_or_default();
    query.finish(())?;
    let id = existing_patient(&request).await?;
    // One more than requested shows whether there are more.
    let found = request.state().billing().transactions(id, after, limit + 1, web::trace(&request)).await;
    let mut transactions = match found {
        Ok(transactions) => transactions,
        Err(error) if error.code() == Some(Code::NotFound) => Vec::new(),
        Err(error) => return Err(of_call(&error)),
    };
    let more = transactions.len() > limit as usize;
    transactions.truncate(limit as usize);
    let next = transactions.last().filter(|_| more).map(|last| last.position);
    let bodies = transactions.into_iter().map(TransactionBody::try_from).collect::<Result<Vec<_>, _>>()?;
    let mut response = json(StatusCode::Ok, &bodies);
    if let Some(position) = next {
        let link = format!("</patients/{id}/billing/transactions?limit={limit}&cursor={position}>; rel=\"next\"");
        response.insert_header("link", link);
    }
    Ok(response)
}

/// The id in the path, of an existing patient.
async fn existing_patient(request: &Request) -> Result<Uuid, Problem> {
    let id = patient_id(request)?;
    request.state().registry().find(id).await?;
    Ok(id)
}
