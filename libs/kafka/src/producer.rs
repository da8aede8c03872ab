use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use futures_util::future::join_all;
use rskafka::client::{
    Client,
    partition::{Compression, PartitionClient, UnknownTopicHandling},
};

use crate::{
    Error, Record, Settings,
    bridge::{call, connect},
    topics,
};

/// Sends records to the partitions of one topic.
///
/// It is owned by one task, which therefore has at most one batch in flight for each partition: the order in which it
/// sends is the order in which they are stored.
#[derive(Debug)]
pub struct Producer {
    settings: Settings,
    topic: String,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    client: Client,
    count: i32,
    partitions: HashMap<i32, Arc<PartitionClient>>,
}

impl Producer {
    /// A producer that connects when it is first used, and again after a failure.
    pub fn new(settings: Settings, topic: impl Into<String>) -> Self {
        Self { settings, topic: topic.into(), connection: None }
    }

    /// How many partitions the topic has.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] if there is no such topic; otherwise if the broker cannot be asked.
    pub async fn partitions(&mut self) -> Result<i32, Error> {
        if let Some(connection) = &self.connection {
            return Ok(connection.count);
        }
        let connection = call("connect", self.settings.deadline, async {
            let client = connect(&self.settings).await?;
            let count = topics::count(&client, &self.topic).await?;
            Ok(Connection { client, count, partitions: HashMap::new() })
        });
        Ok(self.connection.insert(connection.await?).count)
    }

    /// Sends one batch to each of several partitions, all at once, and gives each one's offsets or error. A batch is
    /// stored whole or, as far as its error tells, not at all.
    pub async fn send(&mut self, batches: BTreeMap<i32, Vec<Record>>) -> BTreeMap<i32, Result<Vec<i64>, Error>> {
        let mut connected = BTreeMap::new();
        for (partition, records) in batches {
            connected.insert(partition, (self.partition(partition).await, records));
        }
        let limit = self.settings.deadline;
        let sending = connected.into_iter().map(|(partition, (client, records))| async move {
            let sent = async {
                let client = client?;
                let produce = async { Ok(client.produce(records, Compression::NoCompression).await?) };
                call("produce", limit, produce).await
            };
            (partition, sent.await)
        });
        let results: BTreeMap<_, _> = join_all(sending).await.into_iter().collect();
        let broken =
            |result: &Result<_, Error>| result.as_ref().is_err_and(|error| !matches!(error, Error::Refused(_)));
        if results.values().any(broken) {
            self.connection = None;
        }
        results
    }

    async fn partition(&mut self, partition: i32) -> Result<Arc<PartitionClient>, Error> {
        self.partitions().await?;
        let connection = self.connection.as_mut().expect("`partitions` has connected");
        if let Some(client) = connection.partitions.get(&partition) {
            return Ok(client.clone());
        }
        let client = call("connect", self.settings.deadline, async {
            Ok(connection.client.partition_client(&self.topic, partition, UnknownTopicHandling::Error).await?)
        });
        let client = Arc::new(client.await?);
        connection.partitions.insert(partition, client.clone());
        Ok(client)
    }
}
