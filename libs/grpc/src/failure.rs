//! What the failure of a call means: the one place where a status code becomes a decision.

use std::{error::Error as _, fmt, time::Duration};

use tonic::{Code, Status};

use crate::client::code_name;

/// What a failed call says of the peer and of the request.
///
/// Each decision that depends on a status code is made from this, so that the circuit breaker, retries, the HTTP edge and
/// tasks that are tried again later agree on what a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Nobody answered, or only to say that the service is not there now. This alone counts as an outage of the peer.
    Unavailable,
    /// The peer is there and could not do it this time: it is overloaded, has a fault, or does not accept who we are. The
    /// same call may succeed later without a change to the request.
    Transient,
    /// The peer is there and rejects the request in the state in which its data are.
    Rejected,
    /// The peer is there and rejects the request whatever the state of its data: it never succeeds.
    Invalid,
    /// The peer is there and has no such method: no call of it ever succeeds on that peer.
    Unsupported,
}

impl FailureKind {
    /// The meaning of a code that a peer has answered with, by gRPC's own definitions. `Ok` is no failure; a peer that
    /// fails with it has a fault.
    pub const fn of(code: Code) -> Self {
        match code {
            // CANCELLED: this side drops a call that it cancels and never sees its status, so a peer or a proxy between
            // has given up; tonic's own server says it when a deadline runs out (ours says DEADLINE_EXCEEDED).
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Unavailable,
            Code::Ok
            | Code::Unknown
            | Code::Internal
            | Code::DataLoss
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated => Self::Transient,
            Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::OutOfRange => Self::Rejected,
            Code::InvalidArgument => Self::Invalid,
            Code::Unimplemented => Self::Unsupported,
        }
    }

    /// Whether the same call never succeeds on that peer, so that trying it again is useless.
    pub const fn is_permanent(self) -> bool {
        matches!(self, Self::Invalid | Self::Unsupported)
    }
}

/// Why a call has no result.
#[derive(Debug)]
pub enum CallError {
    /// The peer answered with an error.
    Status(Box<Status>),
    /// The peer could not be reached, or the connection broke before the answer was complete. What is known of the cause
    /// is told.
    Unreachable(String),
    /// The deadline passed. The peer may have done what it was asked, or may still do it.
    Late(Duration),
    /// The call was not made, because the peer has been away.
    BreakerOpen,
}

impl CallError {
    /// Tells a status that a peer has sent from one that tonic makes of a broken connection, whose code says nothing of
    /// the peer: a reset may show as UNKNOWN, INTERNAL or CANCELLED.
    pub(crate) fn from_status(status: Status) -> Self {
        let Some(mut cause) = status.source() else { return Self::Status(Box::new(status)) };
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Self::Unreachable(cause.to_string())
    }

    /// The peer's status, if it gave one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) => Some(status.code()),
            Self::Unreachable(_) | Self::Late(_) | Self::BreakerOpen => None,
        }
    }

    /// What it says of the peer and of the request.
    pub fn kind(&self) -> FailureKind {
        self.code().map_or(FailureKind::Unavailable, FailureKind::of)
    }

    /// Whether the peer is away or late, as opposed to an answer that is an error.
    pub fn is_outage(&self) -> bool {
        self.kind() == FailureKind::Unavailable
    }

    /// Whether the same call never succeeds on that peer: it has no such method, or the request itself is wrong. A task
    /// that meets it ends; with any other error it is tried again later.
    pub fn is_permanent(&self) -> bool {
        self.kind().is_permanent()
    }

    /// A short name for metrics and traces.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Status(status) => code_name(status.code()),
            Self::Unreachable(_) => code_name(Code::Unavailable),
            Self::Late(_) => "late",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A message of the peer could quote what it was sent; the code says enough.
            Self::Status(status) => write!(f, "the peer answered {}", code_name(status.code())),
            Self::Unreachable(cause) => write!(f, "the peer cannot be reached: {cause}"),
            Self::Late(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
            Self::BreakerOpen => f.write_str("not called, because the peer has been away"),
        }
    }
}

impl std::error::Error for CallError {}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;

    /// Every code, with what it means. A code that is missing here fails the test that reads it.
    const RULE: [(Code, FailureKind); 17] = [
        (Code::Ok, FailureKind::Transient),
        (Code::Cancelled, FailureKind::Unavailable),
        (Code::Unknown, FailureKind::Transient),
        (Code::InvalidArgument, FailureKind::Invalid),
        (Code::DeadlineExceeded, FailureKind::Unavailable),
        (Code::NotFound, FailureKind::Rejected),
        (Code::AlreadyExists, FailureKind::Rejected),
        (Code::PermissionDenied, FailureKind::Transient),
        (Code::ResourceExhausted, FailureKind::Transient),
        (Code::FailedPrecondition, FailureKind::Rejected),
        (Code::Aborted, FailureKind::Transient),
        (Code::OutOfRange, FailureKind::Rejected),
        (Code::Unimplemented, FailureKind::Unsupported),
        (Code::Internal, FailureKind::Transient),
        (Code::Unavailable, FailureKind::Unavailable),
        (Code::DataLoss, FailureKind::Transient),
        (Code::Unauthenticated, FailureKind::Transient),
    ];

    #[test]
    fn every_code_has_one_meaning() {
        for number in 0..17 {
            let (code, kind) = RULE[number as usize];
            assert_eq!(code as i32, number, "the table is in the order of the codes");
            assert_eq!(FailureKind::of(code), kind, "{code:?}");
            let error = CallError::Status(Box::new(Status::new(code, "")));
            assert_eq!((error.kind(), error.code()), (kind, Some(code)));
            let outage = matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled);
            assert_eq!(error.is_outage(), outage, "{code:?}");
            let permanent = matches!(code, Code::Unimplemented | Code::InvalidArgument);
            assert_eq!(error.is_permanent(), permanent, "{code:?}");
        }
    }

    #[test]
    fn no_answer_is_an_outage_whatever_code_a_broken_connection_shows() {
        for number in 0..17 {
            let mut status = Status::new(Code::from_i32(number), "transport error");
            status.set_source(Arc::new(io::Error::other("connection reset")));
            let error = CallError::from_status(status);
            assert_eq!((error.kind(), error.code()), (FailureKind::Unavailable, None), "{number}");
            assert_eq!(error.to_string(), "the peer cannot be reached: connection reset");
        }
        for error in [CallError::Late(Duration::from_secs(1)), CallError::BreakerOpen] {
            assert!(error.is_outage() && !error.is_permanent(), "{error}");
        }
    }
}
