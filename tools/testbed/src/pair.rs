//! Two nodes of Apache Kafka that keep every record twice, so that the leader of a partition can move.

use std::{path::Path, time::Duration};

use config::HostPorts;
use smol::future::zip;

use crate::{
    Scratch, StartError,
    broker::{Broker, Kind, Size},
    ports,
};

/// What both nodes are told. A node that is silent for three seconds loses the partitions that it leads, and gets them
/// back a second after it has caught up.
const COMMON: &str = "default.replication.factor=2\n\
    broker.heartbeat.interval.ms=500\n\
    broker.session.timeout.ms=3000\n\
    leader.imbalance.check.interval.seconds=1";

/// The number of the second node.
const SECOND: i32 = 2;
/// Time for the second node to be allowed to lead.
const JOIN_LIMIT: Duration = Duration::from_secs(30);

/// A running pair. Partitions are led by turns by the one and by the other.
#[derive(Debug)]
pub struct Pair {
    /// It decides who leads: who hurts it hurts the pair.
    pub first: Broker,
    /// To be hurt.
    pub second: Broker,
}

impl Pair {
    /// Starts both on free ports, with their data in `scratch`.
    ///
    /// # Errors
    /// If Apache Kafka is not installed, or a node does not come up.
    pub async fn start(scratch: &Scratch) -> Result<Self, StartError> {
        let [first, second, controller] = [ports::free(), ports::free(), ports::free()];
        let quorum = format!("{COMMON}\ncontroller.quorum.voters=1@127.0.0.1:{controller}");
        let deciding = format!("{quorum}\nlisteners=PLAINTEXT://127.0.0.1:{first},CONTROLLER://127.0.0.1:{controller}");
        let following =
            format!("{quorum}\nlisteners=PLAINTEXT://127.0.0.1:{second}\nprocess.roles=broker\nnode.id={SECOND}");
        let places = ["first", "second"].map(|name| scratch.path().join(name));
        let (mut first, mut second) =
            zip(node(&places[0], first, &deciding), node(&places[1], second, &following)).await;
        // One that runs is to end with the test, also if the other one does not come up.
        for node in [&mut first, &mut second].into_iter().flatten() {
            scratch.guard(node.process())?;
        }
        let (first, mut second) = (first?, second?);
        // A node answers before it may lead, and a topic that is made by then is led by the other one alone.
        let settings = first.settings("pair");
        let both = || async { kafka::brokers(&settings).await.is_ok_and(|brokers| brokers.len() == 2) };
        second.process().until(JOIN_LIMIT, both).await?;
        Ok(Self { first, second })
    }

    /// The addresses of both, for `KAFKA_BOOTSTRAP_SERVERS`.
    pub fn addresses(&self) -> String {
        format!("{},{}", self.first.address(), self.second.address())
    }

    /// Settings of a client that knows both.
    pub fn settings(&self, client_id: &'static str) -> kafka::Settings {
        let both = [&self.first, &self.second].map(|node| node.settings(client_id));
        let bootstrap = HostPorts(both.iter().flat_map(|node| node.bootstrap.0.clone()).collect());
        let [first, _] = both;
        kafka::Settings { bootstrap, ..first }
    }

    /// How many partitions of a topic the second node leads, as the first one knows; none before there is the topic.
    ///
    /// # Errors
    /// If the first node does not answer.
    pub async fn led_by_second(&self, topic: &str) -> Result<usize, kafka::Error> {
        let leaders = match kafka::leaders(&self.first.settings("pair"), topic).await {
            Err(kafka::Error::UnknownTopic) => Vec::new(),
            leaders => leaders?,
        };
        let second = self.second.port();
        Ok(leaders.iter().flatten().filter(|leader| leader.port == second).count())
    }
}

async fn node(directory: &Path, port: u16, extra: &str) -> Result<Broker, StartError> {
    Broker::start(Kind::Kafka, directory, port, Size::Small, extra).await
}
