use std::sync::LazyLock;

use telemetry::metrics::{self, IntCounterVec};

/// Changes of certificate files that were taken or rejected.
pub(crate) static RELOADS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Changed certificate files, by outcome: reloaded, or rejected, in which case the old ones stay in use.";
    metrics::counters("tls_reloads_total", help, &["endpoint", "outcome"])
});
/// Handshakes by their outcome.
pub(crate) static HANDSHAKES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "TLS handshakes by outcome: ok, failed or timeout.";
    metrics::counters("tls_handshakes_total", help, &["endpoint", "outcome"])
});
