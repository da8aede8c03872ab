use std::fmt;

use crate::records::LARGEST_BATCH;

/// What is wrong with something that a broker sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It is no answer to what was asked.
    Answer,
    /// It is an answer of so many bytes, more than any that was asked for.
    AnswerTooLarge(usize),
    /// A batch's header contradicts itself.
    Batch,
    /// A batch is of a version of the format that is not read: brokers before 0.11 wrote it.
    Version(u8),
    /// A batch is not what was written, by its checksum.
    Checksum,
    /// What a batch has compressed cannot be had.
    Compression,
    /// A batch is larger than [16 MiB](crate#memory), or what it has compressed is.
    TooLarge,
    /// There are records, and none is given, however much may be.
    NothingGiven,
    /// A record is cut off or contradicts its batch.
    Record,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer => f.write_str("it is no answer to what was asked"),
            Self::AnswerTooLarge(length) => write!(f, "it has {length} bytes, more than any answer to what was asked"),
            Self::Batch => f.write_str("a batch's header contradicts itself"),
            Self::Version(version) => write!(f, "a batch is of version {version} of the format"),
            Self::Checksum => f.write_str("a batch's checksum is wrong"),
            Self::Compression => f.write_str("a batch cannot be decompressed"),
            Self::TooLarge => {
                write!(f, "a batch has more than {} MiB, perhaps after decompression", LARGEST_BATCH >> 20)
            }
            Self::NothingGiven => write!(
                f,
                "it has records and gives none, even of {} MiB: there may be a larger one, which some brokers never give",
                LARGEST_BATCH >> 20
            ),
            Self::Record => f.write_str("a record is cut off or contradicts its batch"),
        }
    }
}

impl std::error::Error for Malformed {}
