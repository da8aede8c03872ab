//! Methods and status codes in spans and metrics, the same for clients and servers.

use telemetry::Span;
use tonic::Code;

/// Sets the name and the attributes of a call's span. `method` is written as `service/method`.
pub(crate) fn describe(span: &mut Span, method: &str) {
    span.rename(|| method.to_owned());
    span.set("rpc.system", "grpc");
    if let Some((service, method)) = method.rsplit_once('/').filter(|_| span.is_recorded()) {
        span.set("rpc.service", service.to_owned());
        span.set("rpc.method", method.to_owned());
    }
}

/// The attribute for a call's status code.
pub(crate) const STATUS_CODE: &str = "rpc.grpc.status_code";

/// gRPC's name of a status code, in lower case.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
