//! Failed calls, and the one place where a status code becomes a decision.

use std::{error::Error as _, time::Duration};

use tonic::{Code, Status};

use crate::{code::code_name, response::Received};

/// What a failed call says about the peer and the request.
///
/// The circuit breaker, retries, the HTTP edge and tasks that are retried later all decide by it, so that they agree on what
/// a status code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No response, or the response that the service is unavailable. Only this counts as an outage of the peer.
    Unavailable,
    /// The peer is up and could not do it this time: it is overloaded, has a fault, or rejects our credentials. The same call
    /// may succeed later.
    Transient,
    /// The peer is up and rejects the request in the current state of its data.
    Rejected,
    /// The peer is up and rejects the request whatever the state of its data: the call never succeeds.
    Invalid,
    /// The peer is up and has no such method: the call never succeeds on that peer.
    Unsupported,
}

impl FailureKind {
    /// The meaning of a status code of a failed call, by gRPC's definitions. A peer that fails a call with `Ok` has a fault.
    pub const fn of(code: Code) -> Self {
        match code {
            // CANCELLED: this side never sees the status of a call that it cancels, so the peer or a proxy has cancelled it.
            // tonic's own server answers it for a deadline that has passed (ours DEADLINE_EXCEEDED).
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
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The peer answered with an error. Its message is not part of the text: it could quote the request, which may be personal
    /// data.
    #[error("the peer answered {}", code_name(.0.code()))]
    Status(Box<Status>),
    /// The peer could not be reached, the connection broke before the response was complete, or the response is not from a gRPC
    /// server but, for instance, from a proxy; with the cause, as far as it is known.
    #[error("the peer cannot be reached: {0}")]
    Unreachable(String),
    /// The deadline passed. The peer may have executed the call, or may still do so.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The call was not made, because the circuit breaker is open.
    #[error("not called, because the circuit breaker is open")]
    BreakerOpen,
}

impl CallError {
    /// Distinguishes a status that the peer has sent from one that was made on this side, of a broken connection or of a
    /// response that is not gRPC: that may be UNKNOWN, INTERNAL, UNIMPLEMENTED or any other.
    pub(crate) fn from_status(status: Status) -> Self {
        let Some(mut cause) = status.source() else { return Self::Unreachable(status.message().to_owned()) };
        if cause.is::<Received>() {
            return Self::Status(Box::new(status));
        }
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Self::Unreachable(cause.to_string())
    }

    /// The status code that the peer has sent, if any.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) => Some(status.code()),
            Self::Unreachable(_) | Self::Timeout(_) | Self::BreakerOpen => None,
        }
    }

    /// What it says about the peer and the request.
    pub fn kind(&self) -> FailureKind {
        self.code().map_or(FailureKind::Unavailable, FailureKind::of)
    }

    /// A short name for metrics and traces.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Status(status) => code_name(status.code()),
            Self::Unreachable(_) => code_name(Code::Unavailable),
            Self::Timeout(_) => "timeout",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;

    /// Every status code and its meaning.
    const MEANINGS: [(Code, FailureKind); 17] = [
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
            let (code, kind) = MEANINGS[number as usize];
            assert_eq!(code as i32, number, "the table is in the order of the codes");
            assert_eq!(FailureKind::of(code), kind, "{code:?}");
            let error = CallError::Status(Box::new(Status::new(code, "")));
            assert_eq!((error.kind(), error.code()), (kind, Some(code)));
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
        for error in [CallError::Timeout(Duration::from_secs(1)), CallError::BreakerOpen] {
            assert_eq!(error.kind(), FailureKind::Unavailable, "{error}");
        }
    }
}
