//! A cluster of two Apache Kafka nodes with replication factor 2, in which the leader of a partition can move.

use std::{path::Path, time::Duration};

use config::HostPorts;
use smol::future::zip;

use crate::{
    Error, Scratch,
    broker::{Broker, Kind, Size},
    ports,
    proxy::{Proxy, Target},
};

/// Settings of both nodes. A node without a heartbeat for three seconds loses its leaderships, and gets them back one second
/// after it has caught up.
const COMMON: &str = "default.replication.factor=2\n\
    broker.heartbeat.interval.ms=500\n\
    broker.session.timeout.ms=3000\n\
    leader.imbalance.check.interval.seconds=1";

/// The node id of the second node.
const SECOND: i32 = 2;
/// Time until the second node may become a leader.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A running cluster. The leaders of partitions alternate between the nodes.
#[derive(Debug)]
pub struct KafkaCluster {
    /// The only controller. Without it, no leader can be elected.
    pub first: Broker,
    /// The node that tests stop and kill.
    pub second: Broker,
}

impl KafkaCluster {
    /// Starts both on free ports, with their data in `scratch`.
    ///
    /// # Errors
    /// If Apache Kafka is not installed, or a node does not come up.
    pub async fn start(scratch: &Scratch) -> Result<Self, Error> {
        Self::start_nodes(scratch, None).await
    }

    /// As [`start`](Self::start), with this proxy between the second node and the controller.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_behind_proxy(scratch: &Scratch, proxy: &Proxy) -> Result<Self, Error> {
        Self::start_nodes(scratch, Some(proxy)).await
    }

    async fn start_nodes(scratch: &Scratch, proxy: Option<&Proxy>) -> Result<Self, Error> {
        let [first, second, controller] = [ports::free(), ports::free(), ports::free()];
        let quorum = |port: u16| format!("{COMMON}\ncontroller.quorum.voters=1@127.0.0.1:{port}");
        let controller_settings = format!(
            "{}\nlisteners=PLAINTEXT://127.0.0.1:{first},CONTROLLER://127.0.0.1:{controller}",
            quorum(controller)
        );
        if let Some(proxy) = proxy {
            proxy.set_target(Target::Port(controller));
        }
        let broker_settings = format!(
            "{}\nlisteners=PLAINTEXT://127.0.0.1:{second}\nprocess.roles=broker\nnode.id={SECOND}",
            quorum(proxy.map_or(controller, Proxy::port))
        );
        let directories = ["first", "second"].map(|name| scratch.path().join(name));
        let (mut first, mut second) =
            zip(node(&directories[0], first, &controller_settings), node(&directories[1], second, &broker_settings))
                .await;
        // Before the errors are returned: a node that runs must end with the test, also if the other one failed to start.
        for node in [&mut first, &mut second].into_iter().flatten() {
            scratch.guard(node.process())?;
        }
        let (first, mut second) = (first?, second?);
        // A node responds before it can be a leader; until then, a new topic would have all its leaders on the other node.
        let settings = first.settings("testbed");
        let both = || async { kafka::brokers(&settings).await.is_ok_and(|brokers| brokers.len() == 2) };
        second.process().until(JOIN_TIMEOUT, both).await?;
        Ok(Self { first, second })
    }

    /// The addresses of both nodes, for `KAFKA_BOOTSTRAP_SERVERS`.
    pub fn addresses(&self) -> String {
        format!("{},{}", self.first.address(), self.second.address())
    }

    /// Settings of a client with both nodes as bootstrap brokers.
    pub fn settings(&self, client_id: &'static str) -> kafka::Settings {
        let both = [&self.first, &self.second].map(|node| node.settings(client_id));
        let bootstrap = HostPorts(both.iter().flat_map(|node| node.bootstrap.0.clone()).collect());
        let [first, _] = both;
        kafka::Settings { bootstrap, ..first }
    }

    /// How many partitions of a topic have their leader on the second node, by the metadata of the first; 0 if the topic does
    /// not exist.
    ///
    /// # Errors
    /// If the first node does not respond.
    pub async fn led_by_second(&self, topic: &str) -> Result<usize, kafka::Error> {
        let leaders = match kafka::leaders(&self.first.settings("testbed"), topic).await {
            Err(kafka::Error::UnknownTopic) => Vec::new(),
            leaders => leaders?,
        };
        let second = self.second.port();
        Ok(leaders.iter().flatten().filter(|leader| leader.port == second).count())
    }
}

async fn node(directory: &Path, port: u16, extra: &str) -> Result<Broker, Error> {
    Broker::start(Kind::Kafka, directory, port, Size::Small, extra).await
}
