use std::sync::OnceLock;

use smol::lock::Mutex;

use crate::{
    Scratch,
    broker::{Broker, Kind},
    postgres::{Cluster, Durability},
};

/// The cluster of this test process, which shares its life with it.
static CLUSTER: OnceLock<Mutex<Option<(Scratch, Cluster)>>> = OnceLock::new();

/// The brokers of this test process, which share their lives with it.
static BROKERS: OnceLock<Mutex<Vec<(Scratch, Broker)>>> = OnceLock::new();

/// Settings of a client of a broker that all tests of this process share; each uses topics of its own. A test that hurts
/// its broker starts one for itself.
///
/// # Panics
/// If the broker cannot be had. `just test` finds out beforehand and leaves out, visibly, the tests that need it.
pub async fn broker(kind: Kind) -> kafka::Settings {
    let mut brokers = BROKERS.get_or_init(Mutex::default).lock().await;
    if let Some((_, broker)) = brokers.iter().find(|(_, broker)| broker.kind() == kind) {
        return broker.settings("test");
    }
    let scratch = Scratch::new().expect("a temporary directory can be made");
    let started = Broker::start_anywhere(kind, &scratch.path().join("broker"), "").await;
    let mut broker = started.unwrap_or_else(|error| panic!("{kind} cannot be had here: {error}"));
    scratch.guard(broker.process()).expect("a file can be written");
    let settings = broker.settings("test");
    brokers.push((scratch, broker));
    settings
}

/// The URL of a new, empty database on a cluster that all tests of this process share. A test that hurts its server
/// starts one for itself.
///
/// # Panics
/// If there is no PostgreSQL.
pub async fn database() -> String {
    let mut shared = CLUSTER.get_or_init(Mutex::default).lock().await;
    if shared.is_none() {
        let scratch = Scratch::new().expect("a temporary directory can be made");
        let started = Cluster::start(&scratch.path().join("postgres"), Durability::Process).await;
        let mut cluster = started.unwrap_or_else(|error| panic!("PostgreSQL cannot be had here: {error}"));
        scratch.guard(cluster.process()).expect("a file can be written");
        *shared = Some((scratch, cluster));
    }
    let (_, cluster) = shared.as_ref().expect("it was started above");
    let name = format!("test_{:016x}", fastrand::u64(..));
    cluster.create_database(&name).await.unwrap_or_else(|error| panic!("no database: {error}"));
    cluster.url(&name)
}

/// Makes each test, an `fn(testbed::broker::Kind)`, into two: one in a module `on_kafka`, one in `on_nisshi`.
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

/// Makes each test, an `fn(testbed::broker::Kind)`, into two, for what Nisshi does not do or depends on the version: one in
/// a module `on_kafka`, one in `on_older_kafka`.
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

/// Makes each test, an `fn(testbed::broker::Kind)`, into three: as [`on_each_kafka`], and one in
/// `on_nisshi`.
#[macro_export]
macro_rules! on_each_version {
    ($($test:ident),* $(,)?) => {
        $crate::on_each_kafka!($($test),*);
        mod on_nisshi {
            $(#[test] fn $test() { super::$test($crate::broker::Kind::Nisshi) })*
        }
    };
}
