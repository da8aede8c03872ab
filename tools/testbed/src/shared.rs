//! The PostgreSQL and the brokers that all tests of a process share, and macros that run a test on each broker.

use std::sync::OnceLock;

use smol::lock::Mutex;

use crate::{
    Scratch,
    broker::{Broker, Kind},
    postgres::{Cluster, Durability},
};

/// The cluster of this test process. The guard kills it when the process ends.
static CLUSTER: OnceLock<Mutex<Option<(Scratch, Cluster)>>> = OnceLock::new();

/// The brokers of this test process. The guard kills them when the process ends.
static BROKERS: OnceLock<Mutex<Vec<(Scratch, Broker)>>> = OnceLock::new();

/// Client settings of a broker that all tests of this process share; each test uses its own topics. A test that injects
/// faults into its broker starts its own.
///
/// # Panics
/// If the broker cannot be started. `just test` checks this beforehand, skips the tests that need it, and says so.
pub async fn broker(kind: Kind) -> kafka::Settings {
    let mut brokers = BROKERS.get_or_init(Mutex::default).lock().await;
    if let Some((_, broker)) = brokers.iter().find(|(_, broker)| broker.kind() == kind) {
        return broker.settings("test");
    }
    let scratch = Scratch::new().expect("a temporary directory can be made");
    let started = Broker::start_on_free_port(kind, &scratch.path().join("broker"), "").await;
    let mut broker = started.unwrap_or_else(|error| panic!("{kind} cannot be started: {error}"));
    scratch.guard(broker.process()).expect("a file can be written");
    let settings = broker.settings("test");
    brokers.push((scratch, broker));
    settings
}

/// The URL of a new, empty database on a cluster that all tests of this process share. A test that injects faults into its
/// server starts its own.
///
/// # Panics
/// If PostgreSQL cannot be started.
pub async fn database() -> String {
    let mut shared = CLUSTER.get_or_init(Mutex::default).lock().await;
    if shared.is_none() {
        let scratch = Scratch::new().expect("a temporary directory can be made");
        let started = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await;
        let mut cluster = started.unwrap_or_else(|error| panic!("PostgreSQL cannot be started: {error}"));
        scratch.guard(cluster.process()).expect("a file can be written");
        *shared = Some((scratch, cluster));
    }
    let (_, cluster) = shared.as_ref().expect("it was started above");
    let name = format!("test_{:016x}", fastrand::u64(..));
    cluster.create_database(&name).await.unwrap_or_else(|error| panic!("no database: {error}"));
    cluster.url(&name)
}

/// Makes two tests of each function `fn(testbed::broker::Kind)`: one in the module `on_kafka`, one in `on_nisshi`.
#[macro_export]
macro_rules! on_each_broker {
    ($($test:ident),* $(,)?) => {
        mod on_kafka {
            $(#[test] fn $test() { super::$test($crate::broker::Kind::Kafka) })*
        }
        mod on_nisshi {
            $(#[test] fn $test() { super::$test($crate::broker::Kind::Nisshi) })*
        }
    };
}

/// Makes two tests of each function `fn(testbed::broker::Kind)`: one in the module `on_kafka`, one in `on_older_kafka`. For
/// what Nisshi lacks, or what depends on Kafka's version.
#[macro_export]
macro_rules! on_each_kafka {
    ($($test:ident),* $(,)?) => {
        mod on_kafka {
            $(#[test] fn $test() { super::$test($crate::broker::Kind::Kafka) })*
        }
        mod on_older_kafka {
            $(#[test] fn $test() { super::$test($crate::broker::Kind::OlderKafka) })*
        }
    };
}

/// Makes three tests of each function `fn(testbed::broker::Kind)`: those of [`on_each_kafka`], and one in `on_nisshi`.
#[macro_export]
macro_rules! on_each_version {
    ($($test:ident),* $(,)?) => {
        $crate::on_each_kafka!($($test),*);
        mod on_nisshi {
            $(#[test] fn $test() { super::$test($crate::broker::Kind::Nisshi) })*
        }
    };
}
