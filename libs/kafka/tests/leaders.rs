//! The client while the leaders of partitions move between nodes of Apache Kafka.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use config::HostPorts;
use kafka::{Consumer, Producer, Record, Settings, create_topic, leaders};
use testbed::{
    Scratch, Signal,
    kafka_cluster::KafkaCluster,
    proxy::{Mode, Proxy},
    until,
};

/// The deadline of a call, and slack for a busy machine.
const DEADLINE: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(1);
/// How long a fetch waits for a record.
const WAIT: Duration = Duration::from_millis(200);
/// Each node leads half of the partitions.
const PARTITIONS: i32 = 2;
const BATCH: u32 = 3;
/// Between two batches, two polls, and after an error.
const PAUSE: Duration = Duration::from_millis(10);

/// The progress of the writer and the readers in each partition, and whether to stop.
#[derive(Debug, Default)]
struct Shared {
    acknowledged: [AtomicU32; PARTITIONS as usize],
    read: [AtomicU32; PARTITIONS as usize],
    stopped: AtomicBool,
}

mod on_kafka_alone {
    use super::*;

    #[test]
    fn leader_changes_lose_no_record_and_every_call_ends_in_time() {
        runtime::block_on(2, async {
            let scratch = Scratch::new().unwrap();
            let mut cluster = KafkaCluster::start(&scratch).await.unwrap();
            let settings = Settings { deadline: DEADLINE, ..cluster.settings("test") };
            create_topic(&cluster.settings("test"), "moving", PARTITIONS).await.unwrap();
            let shared = Arc::new(Shared::default());
            let writing = runtime::spawn(write(Producer::new(settings.clone(), "moving"), shared.clone()));
            let reading: Vec<_> = (0..PARTITIONS)
                .map(|partition| {
                    runtime::spawn(read(Consumer::new(settings.clone(), "moving", partition), shared.clone()))
                })
                .collect();

            for fault in [Fault::Stop, Fault::Kill, Fault::Freeze] {
                until("it leads one", async || cluster.led_by_second("moving").await.unwrap() == 1).await;
                until_progress(&shared).await;
                fault.inject(&mut cluster).await;
                until("the other node leads", async || cluster.led_by_second("moving").await.unwrap() == 0).await;
                until_progress(&shared).await;
                // The leader moves back, and the other node rejects requests.
                fault.heal(&scratch, &mut cluster).await;
                until("it leads again", async || cluster.led_by_second("moving").await.unwrap() == 1).await;
                until_progress(&shared).await;
            }
            shared.stopped.store(true, SeqCst);
            let longest = writing.await;
            assert!(longest < DEADLINE + SLACK, "metadata, connecting, sending: {longest:?}");
            for reading in reading {
                let longest = reading.await;
                assert!(longest < DEADLINE + WAIT + SLACK, "connecting, fetching: {longest:?}");
            }
        });
    }
}

mod with_a_node_cut_off_on_kafka_alone {
    use super::*;

    /// The node still acts as the leader, and says so to whoever asks it first.
    #[test]
    fn clients_leave_a_leader_that_is_cut_off_from_the_controller() {
        runtime::block_on(2, async {
            let scratch = Scratch::new().unwrap();
            let proxy = Proxy::start().await.unwrap();
            let cluster = KafkaCluster::start_behind_proxy(&scratch, &proxy).await.unwrap();
            let [elected, cut_off] = [&cluster.first, &cluster.second].map(|node| node.settings("test"));
            create_topic(&cluster.settings("test"), "moving", PARTITIONS).await.unwrap();
            until("it leads one", async || cluster.led_by_second("moving").await.unwrap() == 1).await;
            let led_by = |settings: Settings, port| async move {
                let leaders = leaders(&settings, "moving").await.unwrap();
                leaders.iter().position(|leader| leader.as_ref().is_some_and(|leader| leader.port == port))
            };
            let partition = led_by(elected.clone(), cluster.second.port()).await.unwrap() as i32;
            let both = [&cut_off, &elected].iter().flat_map(|node| node.bootstrap.0.clone()).collect();
            let settings = Settings { deadline: DEADLINE, bootstrap: HostPorts(both), ..elected };
            let mut producer = Producer::new(settings.clone(), "moving");
            let mut consumer =
                Consumer::new(settings, "moving", partition).with_max_metadata_age(Duration::from_secs(1));
            until("it is written to", async || send(&mut producer, partition).await).await;
            until("it is read", async || consumer.fetch(0, 1 << 20, WAIT).await.is_ok_and(|read| read.next == 1)).await;

            proxy.set(Mode::Stall);
            until("the other node leads", async || cluster.led_by_second("moving").await.unwrap() == 0).await;
            assert_eq!(led_by(cut_off, cluster.second.port()).await, Some(partition as usize), "it does not know");
            until("the other node is written to", async || send(&mut producer, partition).await).await;
            until("it is read", async || consumer.fetch(1, 1 << 20, WAIT).await.is_ok_and(|read| read.next > 1)).await;
            assert_eq!(consumer.fetch(1, 1 << 20, WAIT).await.unwrap().records.iter().next().unwrap().offset, 1);
        });
    }

    async fn send(producer: &mut Producer, partition: i32) -> bool {
        let record = Record { key: None, value: None, headers: Vec::new(), timestamp: chrono::Utc::now() };
        producer.send(BTreeMap::from([(partition, vec![record])])).await[&partition].is_ok()
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A controlled shutdown.
    Stop,
    /// The node is dead: connections are refused.
    Kill,
    /// The node is unresponsive, accepts connections, and still acts as the leader when it is thawed.
    Freeze,
}

impl Fault {
    async fn inject(self, cluster: &mut KafkaCluster) {
        match self {
            Self::Stop => cluster.second.stop().await,
            Self::Kill => cluster.second.process().kill().await,
            Self::Freeze => cluster.second.process().signal(Signal::STOP),
        }
    }

    async fn heal(self, scratch: &Scratch, cluster: &mut KafkaCluster) {
        match self {
            Self::Freeze => cluster.second.process().signal(Signal::CONT),
            Self::Stop | Self::Kill => {
                cluster.second.restart().await.unwrap();
                scratch.guard(cluster.second.process()).unwrap();
            }
        }
    }
}

/// Sends consecutive numbers to each partition, each until it is acknowledged. Returns the time of the longest call.
async fn write(mut producer: Producer, shared: Arc<Shared>) -> Duration {
    let mut longest = Duration::ZERO;
    while !shared.stopped.load(SeqCst) {
        let batches = (0..PARTITIONS).zip(&shared.acknowledged).map(|(partition, next)| {
            let next = next.load(SeqCst);
            let record = |n: u32| Record {
                key: None,
                value: Some(n.to_be_bytes().to_vec()),
                headers: Vec::new(),
                timestamp: chrono::Utc::now(),
            };
            (partition, (next..next + BATCH).map(record).collect())
        });
        let started = Instant::now();
        let results = producer.send(batches.collect()).await;
        longest = longest.max(started.elapsed());
        for (partition, result) in results {
            if result.is_ok() {
                shared.acknowledged[partition as usize].fetch_add(BATCH, SeqCst);
            }
        }
        smol::Timer::after(PAUSE).await;
    }
    longest
}

/// Reads a partition and checks that no number is missing; duplicates are allowed. Returns the time of the longest call.
async fn read(mut consumer: Consumer, shared: Arc<Shared>) -> Duration {
    let read = &shared.read[consumer.partition() as usize];
    let (mut longest, mut offset) = (Duration::ZERO, 0);
    while !shared.stopped.load(SeqCst) {
        let started = Instant::now();
        let fetched = consumer.fetch(offset, 1 << 20, WAIT).await;
        longest = longest.max(started.elapsed());
        let Ok(fetched) = fetched else {
            smol::Timer::after(PAUSE).await;
            continue;
        };
        offset = fetched.next;
        for record in fetched.records.iter() {
            let number = u32::from_be_bytes(record.value.unwrap().try_into().unwrap());
            let next = read.load(SeqCst);
            assert!(number <= next, "{number} follows {next}: a record was lost");
            read.fetch_max(number + 1, SeqCst);
        }
    }
    longest
}

/// Waits until more batches of each partition are acknowledged and read.
async fn until_progress(shared: &Shared) {
    let numbers = |counts: &[AtomicU32]| -> Vec<u32> { counts.iter().map(|count| count.load(SeqCst)).collect() };
    let wanted: Vec<u32> = numbers(&shared.acknowledged).iter().map(|before| before + 10 * BATCH).collect();
    let reached = |counts: &[AtomicU32]| numbers(counts).iter().zip(&wanted).all(|(count, wanted)| count >= wanted);
    let both = async || reached(&shared.acknowledged) && reached(&shared.read);
    until("both partitions are written to and read", both).await;
}
