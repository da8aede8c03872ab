use crate::Scope;

/// Why a call is rejected. The text is for the caller; it never quotes a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no token.
    #[error("The request needs a bearer token.")]
    Missing,
    /// There is a token, and it is not valid.
    #[error("The token is not valid: {0}.")]
    Invalid(&'static str),
    /// The token is valid and does not grant what the call needs.
    #[error("The token does not grant the scope {0}.")]
    Forbidden(Scope),
    /// Nobody's token can be verified, because the issuer's keys could not be fetched yet.
    #[error("Tokens cannot be verified now, because the keys of their issuer are not known.")]
    NoKeys,
}

impl Rejection {
    /// The value of `WWW-Authenticate` (RFC 6750, section 3), if the response has one.
    pub fn challenge(&self) -> Option<String> {
        match self {
            // Without an error code, because the request has no authentication information.
            Self::Missing => Some("Bearer".to_owned()),
            Self::Invalid(why) => Some(format!("Bearer error=\"invalid_token\", error_description=\"{why}\"")),
            Self::Forbidden(scope) => Some(format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"")),
            Self::NoKeys => None,
        }
    }

    /// Its label in metrics.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Invalid(_) => "invalid",
            Self::Forbidden(_) => "forbidden",
            Self::NoKeys => "no_keys",
        }
    }
}
