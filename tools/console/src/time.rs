//! Time stamps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// ISO 8601 in UTC, with milliseconds.
pub(crate) fn iso(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The same of nanoseconds since 1970.
pub(crate) fn iso_of_nanos(nanos: u64) -> String {
    iso(UNIX_EPOCH + Duration::from_nanos(nanos))
}

/// Nanoseconds since 1970.
pub(crate) fn nanos_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
