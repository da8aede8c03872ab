//! How the cost grows: with patients, with connections, with partitions.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{
    Options, Outcome,
    fixture::{Fixture, SETTLE},
    load::{self, figure, words},
    show::step,
};

const PATIENTS: [u64; 4] = [1_000, 100_000, 1_000_000, 5_000_000];
const CONNECTIONS: [u64; 4] = [16, 64, 256, 1024];
const PARTITIONS: [u64; 3] = [1, 3, 12];
/// Patients that are there while connections and partitions are varied.
const BASE: u64 = 100_000;
const TIME: &str = "-w 3s -d 8s";
/// The limits that would turn most of 1,024 connections in a closed loop away: here it is their waiting that is measured.
const NO_REFUSALS: [(&str, &str); 2] = [("HTTP_MAX_IN_FLIGHT", "2048"), ("DATABASE_ACQUIRE_DEADLINE", "10s")];
/// Registrations a second at which the way to analytics is measured: well below any peak.
const RATE: u32 = 200;

/// One thing measured along one axis.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Series {
    /// What grows.
    pub(crate) axis: String,
    /// What is measured.
    pub(crate) what: String,
    /// Successful requests a second and their p99 in milliseconds, at each size.
    pub(crate) points: Vec<Point>,
}

/// A measurement at one size.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Point {
    pub(crate) at: u64,
    pub(crate) per_second: f64,
    pub(crate) p99_ms: f64,
}

/// All series, in the order in which they are shown.
#[derive(Clone, Debug, Default)]
struct Found(Vec<Series>);

impl Found {
    fn add(&mut self, axis: &str, what: &str, point: Point) {
        match self.0.iter_mut().find(|series| series.axis == axis && series.what == what) {
            Some(series) => series.points.push(point),
            None => {
                self.0.push(Series { axis: axis.to_owned(), what: what.to_owned(), points: vec![point] });
            }
        }
    }
}

/// What can grow.
pub(crate) const AXES: [&str; 3] = ["patients", "connections", "partitions"];

pub(crate) async fn measure(ground: &Fixture, options: &Options) -> Outcome<Vec<Series>> {
    let wanted = |axis: &str| options.axis.is_empty() || options.axis.iter().any(|only| only == axis);
    let mut found = Found::default();
    if wanted("patients") {
        patients(ground, options.least_patients..=options.most_patients, &mut found).await?;
    }
    if wanted("connections") {
        connections(ground, &mut found).await?;
    }
    if wanted("partitions") {
        partitions(ground, &mut found).await?;
    }
    Ok(found.0)
}

/// Puts new points among those that were recorded, in the place of those of the same size.
pub(crate) fn merge(recorded: &mut Vec<Series>, new: Vec<Series>) {
    for Series { axis, what, points } in new {
        match recorded.iter_mut().find(|series| series.axis == axis && series.what == what) {
            Some(series) => {
                series.points.retain(|old| points.iter().all(|new| new.at != old.at));
                series.points.extend(points);
                series.points.sort_by_key(|point| point.at);
            }
            None => recorded.push(Series { axis, what, points }),
        }
    }
}

async fn patients(ground: &Fixture, sizes: RangeInclusive<u64>, found: &mut Found) -> Outcome {
    let system = ground.system("growth", &[]).await?;
    let url = format!("http://{}", system.patients[0].address());
    let mut there = 0;
    for count in PATIENTS.into_iter().filter(|count| sizes.contains(count)) {
        ground.seed("growth", there, count).await?;
        there = count;
        for scenario in ["read", "list", "create"] {
            let arguments = format!("closed {url} --scenario {scenario} -c 64 --known 100000 {TIME}");
            let point = point(ground, &arguments, count, &format!("{scenario}, {count} patients")).await?;
            found.add("patients", scenario, point);
        }
        let arguments = format!("closed {url} --path /patients?search=okafor&limit=20 -c 16 {TIME}");
        let point = point(ground, &arguments, count, &format!("search, {count} patients")).await?;
        found.add("patients", "search", point);
    }
    Ok(())
}

async fn connections(ground: &Fixture, found: &mut Found) -> Outcome {
    let system = ground.system("connections", &NO_REFUSALS).await?;
    let url = format!("http://{}", system.patients[0].address());
    ground.seed("connections", 0, BASE).await?;
    for count in CONNECTIONS {
        for scenario in ["read", "create"] {
            let arguments = format!("closed {url} --scenario {scenario} -c {count} {TIME}");
            let point = point(ground, &arguments, count, &format!("{scenario}, {count} connections")).await?;
            found.add("connections", scenario, point);
        }
    }
    Ok(())
}

async fn partitions(ground: &Fixture, found: &mut Found) -> Outcome {
    for count in PARTITIONS {
        let name = format!("partitions{count}");
        let system = ground.system(&name, &[("KAFKA_TOPIC_PARTITIONS", &count.to_string())]).await?;
        let url = format!("http://{}", system.patients[0].address());
        let arguments = format!("closed {url} --scenario create -c 64 {TIME}");
        let created = point(ground, &arguments, count, &format!("create, {count} partitions")).await?;
        found.add("partitions", "create", created);
        let follow = format!(
            "--analytics http://{} --kafka {} --topic {}",
            system.analytics.address(),
            ground.broker.address(),
            system.backing_services().topic
        );
        smol::Timer::after(SETTLE).await;
        let arguments = words(&format!("open --rate {RATE} {url} --scenario create {follow} {TIME}"));
        let run = load::run(ground.directory(), &arguments);
        let report = step(&format!("POST to applied, {count} partitions"), run).await?;
        let latency = |name: &str| figure(&report, &format!("/applied/latency/{name}"));
        let applied = Point { at: count, per_second: latency("perSecond"), p99_ms: latency("p99Ms") };
        found.add("partitions", "POST to applied", applied);
    }
    Ok(())
}

async fn point(ground: &Fixture, arguments: &str, at: u64, what: &str) -> Outcome<Point> {
    ground.cluster.run("postgres", "checkpoint").await?;
    let arguments = words(arguments);
    let report = step(what, load::run(ground.directory(), &arguments)).await?;
    Ok(Point { at, per_second: figure(&report, "/all/perSecond"), p99_ms: figure(&report, "/all/p99Ms") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_was_measured_again_takes_the_place_of_the_old_one() {
        let series = |points: &[(u64, f64)]| {
            let points = points.iter().map(|(at, per_second)| Point { at: *at, per_second: *per_second, p99_ms: 1.0 });
            vec![Series { axis: "patients".to_owned(), what: "read".to_owned(), points: points.collect() }]
        };
        let mut recorded = Vec::new();
        merge(&mut recorded, series(&[(1, 10.0), (100, 20.0)]));
        merge(&mut recorded, series(&[(10, 15.0), (1, 11.0)]));
        let points: Vec<_> = recorded[0].points.iter().map(|point| (point.at, point.per_second)).collect();
        assert_eq!((recorded.len(), points), (1, vec![(1, 11.0), (10, 15.0), (100, 20.0)]));
    }
}
