//! The log of a partition on the disk of Apache Kafka.

use std::{fs, io, path::PathBuf};

use super::{Broker, apache_kafka};

/// Bytes of a batch before those that its length field counts, which is at their end.
const PREFIX: usize = 12;

impl Broker {
    /// The file of the first segment.
    pub fn log_segment(&self, topic: &str, partition: i32) -> PathBuf {
        let partition = self.directory.join(apache_kafka::DATA).join(format!("{topic}-{partition}"));
        partition.join(format!("{:020}.log", 0))
    }

    /// Truncates the log after this many batches, as after a power cut: call it while the broker is not running.
    ///
    /// # Errors
    /// If the file cannot be read and written, or has not as many batches.
    pub fn truncate_log(&self, topic: &str, partition: i32, batches: usize) -> io::Result<()> {
        let file = self.log_segment(topic, partition);
        let log = fs::read(&file)?;
        let mut end = 0;
        for _ in 0..batches {
            let length = log.get(end + PREFIX - 4..end + PREFIX).ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            end += PREFIX + length;
        }
        if end >= log.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        fs::OpenOptions::new().write(true).open(file)?.set_len(end as u64)
    }
}
