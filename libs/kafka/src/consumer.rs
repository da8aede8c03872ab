use std::{ops::Range, time::Duration};

use rskafka::client::partition::{OffsetAt, PartitionClient, UnknownTopicHandling};

use crate::{
    Error, RecordAndOffset, Settings,
    bridge::{call, connect},
    topics,
};

/// Bytes of the largest batch that is read.
const LARGEST_BATCH: i32 = 16 * 1024 * 1024;

/// Reads one partition of a topic. It keeps no position: the caller says which offset it wants.
#[derive(Debug)]
pub struct Consumer {
    settings: Settings,
    topic: String,
    partition: i32,
    connection: Option<PartitionClient>,
}

/// What a fetch gave.
#[derive(Debug)]
pub struct Fetched {
    /// Records from the asked offset on, in order.
    pub records: Vec<RecordAndOffset>,
    /// The offset to ask for next.
    pub next: i64,
    /// The offset after the last record of the partition.
    pub high_watermark: i64,
}

impl Consumer {
    /// A consumer that connects when it is first used, and again after a failure.
    pub fn new(settings: Settings, topic: impl Into<String>, partition: i32) -> Self {
        Self { settings, topic: topic.into(), partition, connection: None }
    }

    /// The partition that it reads.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The offsets that there are: from the first record kept to after the last.
    ///
    /// # Errors
    /// If the broker cannot be asked, or has no such partition.
    pub async fn offsets(&mut self) -> Result<Range<i64>, Error> {
        let client = self.connection().await?;
        let work =
            async { Ok(client.get_offset(OffsetAt::Earliest).await?..client.get_offset(OffsetAt::Latest).await?) };
        let result = call("offsets", self.settings.deadline, work).await;
        self.keep_if_well(client, result)
    }

    /// Fetches about `max_bytes` from `offset` on, waiting up to `wait` for a first record.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if there is no such offset, where the broker says so; otherwise if it cannot be asked.
    pub async fn fetch(&mut self, offset: i64, max_bytes: i32, wait: Duration) -> Result<Fetched, Error> {
        let client = self.connection().await?;
        // Some brokers take 0 for "no answer at all".
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX).max(1);
        let work = async {
            let fetch = async |max_bytes| {
                let (records, high_watermark) = client.fetch_records(offset, 1..max_bytes, wait_ms).await?;
                // Some brokers give the batch's first records although the asked offset is in its middle.
                let records: Vec<_> = records.into_iter().filter(|record| record.offset >= offset).collect();
                Ok::<_, Error>((records, high_watermark))
            };
            let (mut records, mut high_watermark) = fetch(max_bytes).await?;
            if records.is_empty() && high_watermark > offset {
                // Some brokers give nothing of a batch that is larger than asked for.
                (records, high_watermark) = fetch(LARGEST_BATCH).await?;
            }
            let next = match records.last() {
                Some(record) => record.offset + 1,
                // Below the last stable offset with nothing to read there is a transaction's marker, of one offset.
                None if high_watermark > offset && client.get_offset(OffsetAt::Latest).await? > offset => offset + 1,
                None => offset,
            };
            Ok(Fetched { records, next, high_watermark })
        };
        let result = call("fetch", self.settings.deadline + wait, work).await;
        self.keep_if_well(client, result)
    }

    async fn connection(&mut self) -> Result<PartitionClient, Error> {
        if let Some(client) = self.connection.take() {
            return Ok(client);
        }
        let work = async {
            let client = connect(&self.settings).await?;
            // Some brokers answer fetches of a topic that they do not have, with nothing.
            if topics::count(&client, &self.topic).await? <= self.partition {
                return Err(Error::UnknownTopic);
            }
            Ok(client.partition_client(&self.topic, self.partition, UnknownTopicHandling::Error).await?)
        };
        call("connect", self.settings.deadline, work).await
    }

    fn keep_if_well<T>(&mut self, client: PartitionClient, result: Result<T, Error>) -> Result<T, Error> {
        if matches!(result, Ok(_) | Err(Error::OffsetOutOfRange)) {
            self.connection = Some(client);
        }
        result
    }
}
