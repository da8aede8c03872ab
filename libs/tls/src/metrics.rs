use std::sync::LazyLock;

use telemetry::metrics::{self, IntCounterVec, IntGaugeVec};

/// Changes of certificate files that were taken or rejected.
pub(crate) static RELOADS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Changed certificate files, by outcome: reloaded, or rejected, in which case the old ones stay in use.";
    metrics::counters("tls_reloads_total", help, &["endpoint", "outcome"])
});
/// When the certificate in use expires.
pub(crate) static EXPIRES: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let help = "When our own certificate in use expires, in seconds since 1970.";
    metrics::gauges("tls_certificate_expires_timestamp_seconds", help, &["endpoint"])
});
/// Handshakes by their outcome.
pub(crate) static HANDSHAKES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "TLS handshakes by outcome: ok, failed or timeout.";
    metrics::counters("tls_handshakes_total", help, &["endpoint", "outcome"])
});
