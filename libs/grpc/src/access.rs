//! Who may call which method.

use std::sync::Arc;

use auth::{Authenticator, Caller, Rejection, Scope, ServiceIdentity};
use tonic::{
    Status,
    codegen::http::{HeaderMap, HeaderValue, Request},
    metadata::MetadataMap,
};

use crate::health::is_health;

/// What a call has to fulfil before its message is read: a token with the method's scope, or the certificate of a service
/// that the server trusts.
#[derive(Clone, Debug)]
pub struct Access {
    authenticator: Authenticator,
    scopes: &'static [(&'static str, Scope)],
}

impl Access {
    /// The scope of each method, by its path, such as `/BillingService/GetBillingAccount`. A method that is not in the
    /// table, such as those of reflection, needs a valid token.
    pub fn new(authenticator: Authenticator, scopes: &'static [(&'static str, Scope)]) -> Self {
        Self { authenticator, scopes }
    }

    /// Everybody may call every method.
    pub(crate) fn open() -> Self {
        Self { authenticator: Authenticator::off(), scopes: &[] }
    }

    /// Lets a call through, with its [`Caller`]. The service that has made the connection, known by its certificate, is in
    /// the request's extensions, as an `Arc<ServiceIdentity>`.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, `PERMISSION_DENIED`, or `UNAVAILABLE` if no token can be verified now.
    pub(crate) async fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Status> {
        let path = request.uri().path();
        if !self.authenticator.is_on() || is_health(path) {
            return Ok(());
        }
        let caller = match request.extensions().get::<Arc<ServiceIdentity>>() {
            Some(service) => Caller::Service(service.clone()),
            None => {
                let values = request.headers().get_all("authorization").iter();
                // A value that is not text is a malformed token.
                let values = values.map(|value| value.to_str().unwrap_or_default());
                self.authenticator.caller(values).await.map_err(|rejection| status(&rejection))?
            }
        };
        if let Some((_, scope)) = self.scopes.iter().find(|(method, _)| *method == path) {
            self.authenticator.authorize(&caller, *scope).map_err(|rejection| status(&rejection))?;
        }
        request.extensions_mut().insert(caller);
        Ok(())
    }
}

fn status(rejection: &Rejection) -> Status {
    let message = rejection.to_string();
    let mut status = match rejection {
        Rejection::Missing | Rejection::Invalid(_) => Status::unauthenticated(message),
        Rejection::Forbidden(_) => Status::permission_denied(message),
        Rejection::NoKeys => Status::unavailable(message),
    };
    if let Some(challenge) = rejection.challenge().and_then(|challenge| HeaderValue::from_str(&challenge).ok()) {
        let headers = HeaderMap::from_iter([(hyper::header::WWW_AUTHENTICATE, challenge)]);
        *status.metadata_mut() = MetadataMap::from_headers(headers);
    }
    status
}
