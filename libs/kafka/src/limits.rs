//! Limits of what one fetch takes.

/// The largest batch, compressed and decompressed. A larger one is an [`UnreadableBatch`](crate::UnreadableBatch).
pub(crate) const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Decompressed bytes of one fetch, unless the first batch alone has more. The rest is left for the next fetch.
pub(crate) const MAX_DECOMPRESSED_BYTES: usize = 2 * 1024 * 1024;
/// Records of one fetch: a batch may have millions of empty ones, and the caller needs memory for each.
pub(crate) const MAX_RECORDS: usize = 16 * 1024;
