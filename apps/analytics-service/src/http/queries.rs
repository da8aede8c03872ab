//! Answers from the partitions of all instances.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use chrono::NaiveDate;
use serde::de::DeserializeOwned;
use smol::{future::or, lock::Mutex};
use uuid::Uuid;

use super::bodies::{
    CountsBody, Expected, InstanceBody, MissingBody, OwnSummaryBody, Series, SummaryBody, merge_series,
};
use crate::{
    counts::Interval,
    member_client::MemberClient,
    members::{Member, Members},
    read_model::{ReadModel, Snapshot},
};

/// What another instance is asked for.
const SUMMARY: &str = "/analytics/summary?scope=instance";

/// Answers queries. Clones share their data.
#[derive(Clone)]
pub(crate) struct Queries {
    /// Chosen at the start.
    instance: Uuid,
    read_model: ReadModel,
    members: Members,
    client: MemberClient,
    /// The last answers of the others to the streams of each caller.
    latest: Arc<std::sync::Mutex<HashMap<Authorization, LatestAnswers>>>,
}

/// What the other instances have answered.
#[derive(Clone)]
struct Answers<T> {
    answers: Vec<InstanceBody<T>>,
    /// Whether all of them did.
    is_complete: bool,
}

/// The header by which a caller says who it is.
type Authorization = Option<String>;

/// Answers, and when they came.
type LatestAnswers = Arc<Mutex<Option<(Instant, Answers<CountsBody>)>>>;

/// The summaries of a stream. Those of one caller ask the other instances together.
pub(super) struct SummaryStream {
    queries: Queries,
    authorization: Authorization,
    latest: LatestAnswers,
}

/// Which registrations a series has, and how they are grouped.
#[derive(Clone, Copy)]
pub(super) struct SeriesQuery {
    pub(super) interval: Interval,
    pub(super) from: Option<NaiveDate>,
    pub(super) to: Option<NaiveDate>,
    /// Points that an instance has for a partition at most.
    pub(super) limit: usize,
}

impl Queries {
    pub(crate) fn new(read_model: ReadModel, members: Members, client: MemberClient) -> Self {
        let instance = Uuid::now_v7();
        Self { instance, read_model, members, client, latest: Arc::default() }
    }

    /// Waits for the next change of this instance's counts, or of the members, after this call.
    pub(super) fn next_change(&self) -> impl Future<Output = ()> + use<> {
        or(self.read_model.next_change(), self.members.next_change())
    }

    /// Whether other instances have partitions too, of which no change is heard here.
    pub(super) fn has_others(&self) -> bool {
        self.members.current().is_some_and(|members| members.iter().any(|member| !member.is_self))
    }

    /// The summary of all instances.
    pub(super) async fn summary(&self, authorization: Option<&str>) -> SummaryBody {
        let Some(members) = self.members.current() else { return self.read_model.read(SummaryBody::new) };
        let answers = self.ask(&members, SUMMARY, authorization).await;
        self.merge(&members, answers)
    }

    /// The summaries of a stream of this caller.
    pub(super) fn stream(&self, authorization: Authorization) -> SummaryStream {
        // Nothing panics while it is held.
        let mut all = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        // Those whose streams have ended.
        all.retain(|_, latest| Arc::strong_count(latest) > 1);
        let latest = all.entry(authorization.clone()).or_default().clone();
        SummaryStream { queries: self.clone(), authorization, latest }
    }

    async fn ask<T>(&self, members: &[Member], target: &str, authorization: Option<&str>) -> Answers<T>
    where
        InstanceBody<T>: DeserializeOwned + Send + 'static,
    {
        let others: Vec<_> = members.iter().filter(|member| !member.is_self).cloned().collect();
        let answers = self.client.get_all(&others, target, authorization).await;
        Answers { is_complete: answers.len() == others.len(), answers }
    }

    fn merge(&self, members: &[Member], answers: Answers<CountsBody>) -> SummaryBody {
        let Answers { mut answers, is_complete } = answers;
        self.read_model.read(|snapshot| {
            let expected = Expected::new(members, snapshot, is_complete);
            if answers.is_empty() {
                // Nothing is added, so the counts are taken as they are.
                let missing = expected.without(|partition| snapshot.partitions.contains_key(&partition));
                return SummaryBody { missing, ..SummaryBody::new(snapshot) };
            }
            answers.push(InstanceBody::new(self.instance, snapshot, |counts| counts.into()));
            SummaryBody::merge(answers, &expected)
        })
    }

    /// The summary of this instance, for another one.
    pub(super) fn own_summary(&self) -> OwnSummaryBody {
        self.read_model.read(|snapshot| OwnSummaryBody::new(self.instance, snapshot))
    }

    /// The registrations of all instances.
    pub(super) async fn registrations(&self, query: SeriesQuery, authorization: Option<&str>) -> (Series, MissingBody) {
        let SeriesQuery { interval, from, to, .. } = query;
        let Some(members) = self.members.current() else {
            let series = self.read_model.read(|snapshot| snapshot.counts.registrations(interval, from, to));
            return (series, MissingBody::default());
        };
        let Answers { mut answers, is_complete } = self.ask(&members, &query.target(), authorization).await;
        let expected = |snapshot: &Snapshot| Expected::new(&members, snapshot, is_complete);
        if answers.is_empty() {
            return self.read_model.read(|snapshot| {
                let missing = expected(snapshot).without(|partition| snapshot.partitions.contains_key(&partition));
                (snapshot.counts.registrations(interval, from, to), missing)
            });
        }
        answers.push(self.own_registrations(query));
        merge_series(answers, &self.read_model.read(expected))
    }

    /// The registrations of this instance, for another one.
    pub(super) fn own_registrations(&self, query: SeriesQuery) -> InstanceBody<Series> {
        let SeriesQuery { interval, from, to, limit } = query;
        self.read_model.read(|snapshot| {
            InstanceBody::new(self.instance, snapshot, |counts| {
                counts.registrations(interval, from, to).into_iter().take(limit).collect()
            })
        })
    }
}

impl SummaryStream {
    pub(super) fn queries(&self) -> &Queries {
        &self.queries
    }

    /// The summary of all instances, with answers of the others that are at most this old.
    pub(super) async fn summary(&self, max_age: Duration) -> SummaryBody {
        let queries = &self.queries;
        let Some(members) = queries.members.current() else { return queries.read_model.read(SummaryBody::new) };
        let mut latest = self.latest.lock().await;
        let recent = latest.as_ref().filter(|(at, _)| at.elapsed() < max_age);
        let answers = match recent {
            Some((_, answers)) => answers.clone(),
            None => {
                let answers = queries.ask(&members, SUMMARY, self.authorization.as_deref()).await;
                *latest = Some((Instant::now(), answers.clone()));
                answers
            }
        };
        drop(latest);
        queries.merge(&members, answers)
    }
}

impl SeriesQuery {
    fn target(&self) -> String {
        let interval = match self.interval {
            Interval::Day => "day",
            Interval::Month => "month",
            Interval::Year => "year",
        };
        let mut target = format!("/analytics/registrations?scope=instance&interval={interval}");
        for (name, date) in [("from", self.from), ("to", self.to)] {
            if let Some(date) = date {
                target.push_str(&format!("&{name}={date}"));
            }
        }
        target
    }
}
