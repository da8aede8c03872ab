use thiserror::Error;

use crate::limits::MAX_BATCH_BYTES;

/// Why bytes that a broker sent cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The bytes are no response to the request.
    #[error("it is no response to the request")]
    Response,
    /// The response has this many bytes, more than any request allows.
    #[error("it has {0} bytes, more than any response to the request")]
    ResponseTooLarge(usize),
    /// The header of a batch is inconsistent.
    #[error("a batch's header is inconsistent")]
    Batch,
    /// The batch has this magic byte: brokers before 0.11 wrote it.
    #[error("a batch is of version {0} of the format")]
    UnsupportedMagic(u8),
    /// The checksum of a batch does not match.
    #[error("a batch's checksum is wrong")]
    Checksum,
    /// A batch cannot be decompressed.
    #[error("a batch cannot be decompressed")]
    Compression,
    /// A batch is larger than [16 MiB](crate#memory), compressed or decompressed.
    #[error("a batch has more than {} MiB, perhaps after decompression", MAX_BATCH_BYTES >> 20)]
    TooLarge,
    /// The partition has records at this offset, and the broker returns none, whatever the size of the fetch.
    #[error(
        "it has records and returns none, even of {} MiB: there may be a larger one, which some brokers never return",
        MAX_BATCH_BYTES >> 20
    )]
    NoRecordsReturned,
    /// A record is truncated or inconsistent with its batch.
    #[error("a record is truncated or inconsistent with its batch")]
    Record,
}
