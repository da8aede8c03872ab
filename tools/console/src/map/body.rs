//! The map as JSON for the page; [API.md](../../API.md) describes it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::State;

/// A part as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartBody {
    pub(super) id: &'static str,
    pub(super) kind: &'static str,
    pub(crate) state: State,
    pub(super) replicas: Vec<ReplicaBody>,
    pub(super) seen: Option<String>,
    pub(super) stale: bool,
    pub(crate) detail: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct ReplicaBody {
    pub(super) address: String,
    pub(super) state: State,
    pub(super) seen: Option<String>,
    pub(super) version: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct EdgeBody {
    pub(super) id: &'static str,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) breaker: Option<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartitionBody {
    pub(super) partition: i64,
    pub(super) applied: i64,
    pub(super) lag: i64,
}

/// The map as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MapBody {
    pub(super) now: String,
    pub(super) parts: Vec<PartBody>,
    pub(super) edges: Vec<EdgeBody>,
    pub(super) outbox: OutboxBody,
    pub(super) tasks: TasksBody,
    pub(super) partitions: Vec<PartitionBody>,
    pub(super) lag: Option<i64>,
    pub(super) counts: Option<CountsBody>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct OutboxBody {
    pub(super) pending: Option<f64>,
    pub(super) oldest_s: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct TasksBody {
    pub(super) pending: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct CountsBody {
    pub(super) active: Option<i64>,
    pub(super) created: Option<i64>,
    pub(super) updated: Option<i64>,
    pub(super) deleted: Option<i64>,
}

/// The history as the page draws it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HistoryBody {
    pub(super) step_s: u32,
    pub(super) end: String,
    pub(super) series: BTreeMap<&'static str, Vec<Option<f64>>>,
}
