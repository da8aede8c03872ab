//! Memory of fetches. It needs a process of its own, because it reads the peak of the process.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "connections/broker.rs"]
mod broker;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use broker::{ReceivedRequest, any_broker, loopback, settings, supporting};
use bytes::Bytes;
use config::HostPort;
use futures_util::future::join_all;
use kafka::{
    Consumer, FetchMemory, Malformed, Record, UnreadableBatch,
    testing::{Codec, batch, bomb},
};
use kafka_protocol::{
    messages::{
        ApiKey, BrokerId, FetchRequest, FetchResponse, MetadataResponse, TopicName,
        fetch_response::{FetchableTopicResponse, PartitionData},
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
    },
    protocol::StrBytes,
};
use smol::Task;

const MIB: usize = 1 << 20;
const PARTITIONS: i32 = 60;
const WAIT: Duration = Duration::from_millis(10);

/// The peak resident memory of this process, in bytes.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A broker that leads all partitions with this batch. With `announced`, the length of its fetch responses is that, and they
/// are incomplete.
async fn leading(batch: Bytes, announced: Option<usize>) -> (HostPort, Task<()>) {
    let port = Arc::new(Mutex::new(0));
    let own_port = port.clone();
    let response = move |received: &ReceivedRequest| match received.key {
        ApiKey::ApiVersions => received.response(&supporting(&[(ApiKey::Metadata, 4..=12), (ApiKey::Fetch, 4..=17)])),
        ApiKey::Metadata => received.response(&metadata(*own_port.lock().unwrap())),
        _ => {
            let request: FetchRequest = received.decode();
            let partition = PartitionData::default()
                .with_partition_index(request.topics[0].partitions[0].partition)
                .with_high_watermark(1)
                .with_last_stable_offset(1)
                .with_records(Some(batch.clone()));
            let found = FetchableTopicResponse::default()
                .with_topic(request.topics[0].topic.clone())
                .with_partitions(vec![partition]);
            let mut response = received.response(&FetchResponse::default().with_responses(vec![found]));
            if let Some(announced) = announced {
                response[..4].copy_from_slice(&(announced as i32).to_be_bytes());
            }
            response
        }
    };
    let (address, task) = any_broker(response).await;
    *port.lock().unwrap() = address.port;
    (loopback(address.port), task)
}

fn metadata(port: u16) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(7))
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(port.into());
    let partition =
        |index| MetadataResponsePartition::default().with_partition_index(index).with_leader_id(BrokerId(7));
    let topic = MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_static_str("topic"))))
        .with_partitions((0..PARTITIONS).map(partition).collect());
    MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![topic])
}

async fn first_unreadable(broker: &HostPort) -> UnreadableBatch {
    let mut consumer = Consumer::new(settings(vec![broker.clone()]), "topic", 0);
    let fetched = consumer.fetch(0, MIB as i32, WAIT).await.unwrap();
    assert!(fetched.records.is_empty() && fetched.next == 1);
    fetched.unreadable.unwrap()
}

/// One test, because the peak is that of the whole process.
#[test]
fn the_memory_of_a_fetch_is_bounded_whatever_the_broker_sends() {
    runtime::block_on(2, async {
        // Larger than requested: the connections keep nothing of it.
        let (broker, _broker) = leading(batch(Codec::None, &[record(MIB)]), None).await;
        let (memory, before, mut consumers) = (FetchMemory::default(), peak_memory(), Vec::new());
        for partition in 0..PARTITIONS {
            let mut consumer =
                Consumer::new(settings(vec![broker.clone()]), "topic", partition).sharing(memory.clone());
            assert_eq!(consumer.fetch(0, 16 * 1024, WAIT).await.unwrap().records.iter().count(), 1);
            consumers.push(consumer);
        }
        let taken = peak_memory() - before;
        println!("{PARTITIONS} of 1 MiB one after the other: {} KiB", taken / 1024);
        assert!(taken < 20 * MIB, "{taken} bytes");
        drop(consumers);

        // Nearly the largest batch, in some partitions: one is read at a time.
        let (broker, _broker) = leading(batch(Codec::Zstd, &[record(15 * MIB)]), None).await;
        let before = peak_memory();
        let read = (0..8).map(async |partition| {
            let settings = kafka::Settings { deadline: Duration::from_secs(60), ..settings(vec![broker.clone()]) };
            let mut consumer = Consumer::new(settings, "topic", partition);
            let fetched = consumer.fetch(0, MIB as i32, WAIT).await.unwrap();
            assert_eq!(fetched.records.iter().next().unwrap().value.unwrap().len(), 15 * MIB);
        });
        join_all(read).await;
        let taken = peak_memory() - before;
        println!("eight of 15 MiB at once: {} KiB", taken / 1024);
        assert!(taken < 40 * MIB, "{taken} bytes");

        for codec in [Codec::Gzip, Codec::SnappyFramed, Codec::Lz4, Codec::Zstd] {
            let bomb = bomb(codec, 300 * MIB);
            println!("{codec:?}: {} bytes decompress to {}", bomb.len(), 300 * MIB);
            let (broker, _broker) = leading(bomb, None).await;
            let before = peak_memory();
            assert_eq!(first_unreadable(&broker).await.reason, Malformed::TooLarge, "{codec:?}");
            let taken = peak_memory() - before;
            println!("{codec:?}: {} KiB", taken / 1024);
            assert!(taken < 48 * MIB, "{codec:?} took {taken} bytes");
        }

        // A raw snappy block begins with its length, which is too high here.
        let mut lying = batch(Codec::Snappy, &[record(100)]).to_vec();
        lying.splice(61..62, *b"\xff\xff\xff\xff\x0f");
        let length = lying.len() as i32 - 12;
        lying[8..12].copy_from_slice(&length.to_be_bytes());
        let checksum = crc32c::crc32c(&lying[21..]).to_be_bytes();
        lying[17..21].copy_from_slice(&checksum);
        let (broker, _broker) = leading(lying.into(), None).await;
        let before = peak_memory();
        assert_eq!(first_unreadable(&broker).await.reason, Malformed::TooLarge);
        assert!(peak_memory() - before < 4 * MIB);

        // A batch that is larger than a response may be is recognized by its header.
        let mut large = batch(Codec::None, &[record(100_000)]).to_vec();
        large[8..12].copy_from_slice(&(200 * MIB as i32).to_be_bytes());
        let (broker, _broker) = leading(large.into(), Some(200 * MIB)).await;
        let before = peak_memory();
        let mut consumer = Consumer::new(settings(vec![broker.clone()]), "topic", 0);
        for _ in 0..2 {
            // The rest of the response before is not taken for the next one.
            let fetched = consumer.fetch(0, MIB as i32, WAIT).await.unwrap();
            let unreadable = fetched.unreadable.unwrap();
            assert_eq!((unreadable.reason, unreadable.bytes), (Malformed::TooLarge, 200 * MIB + 12));
        }
        assert!(peak_memory() - before < 4 * MIB);
    });
}

fn record(length: usize) -> Record {
    let value = (0..length).map(|n| (n / 64) as u8).collect();
    Record { key: None, value: Some(value), headers: Default::default(), timestamp: chrono::Utc::now() }
}
