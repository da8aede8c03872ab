//! How the cost grows: with patients, with connections, with partitions.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{
    Options, Outcome,
    fixture::{Fixture, SETTLE_TIME},
    load::{self, figure, split_words},
    progress::step,
};

const PATIENTS: [u64; 4] = [1_000, 100_000, 1_000_000, 5_000_000];
const CONNECTIONS: [u64; 4] = [16, 64, 256, 1024];
const PARTITIONS: [u64; 3] = [1, 3, 12];
/// Patients in the database while connections and partitions are varied.
const BASE_PATIENTS: u64 = 100_000;
/// Warm-up and measured time of each point, as options of `load`.
const TIMES: &str = "-w 3s -d 8s";
/// Limits that reject no request of 1,024 connections in a closed loop, so that their waiting is measured.
const NO_REJECTIONS: [(&str, &str); 2] = [("HTTP_MAX_IN_FLIGHT", "2048"), ("DATABASE_ACQUIRE_DEADLINE", "10s")];
/// Registrations a second at which event latency is measured: well below any peak.
const EVENT_LATENCY_RATE: u32 = 200;

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
struct AllSeries(Vec<Series>);

impl AllSeries {
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

pub(crate) async fn measure(fixture: &Fixture, options: &Options) -> Outcome<Vec<Series>> {
    let is_selected = |axis: &str| options.axis.is_empty() || options.axis.iter().any(|only| only == axis);
    let mut series = AllSeries::default();
    if is_selected("patients") {
        patients(fixture, options.least_patients..=options.most_patients, &mut series).await?;
    }
    if is_selected("connections") {
        connections(fixture, &mut series).await?;
    }
    if is_selected("partitions") {
        partitions(fixture, &mut series).await?;
    }
    Ok(series.0)
}

/// Merges new points into the recorded ones; they replace those of the same size.
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

async fn patients(fixture: &Fixture, sizes: RangeInclusive<u64>, series: &mut AllSeries) -> Outcome {
    let system = fixture.system("growth", &[]).await?;
    let url = format!("http://{}", system.patients[0].address());
    let mut present = 0;
    for count in PATIENTS.into_iter().filter(|count| sizes.contains(count)) {
        fixture.seed("growth", present, count).await?;
        present = count;
        for scenario in ["read", "list", "create"] {
            let arguments = format!("closed {url} --scenario {scenario} -c 64 --known 100000 {TIMES}");
            let point = point(fixture, &arguments, count, &format!("{scenario}, {count} patients")).await?;
            series.add("patients", scenario, point);
        }
        let arguments = format!("closed {url} --path /patients?search=okafor&limit=20 -c 16 {TIMES}");
        let point = point(fixture, &arguments, count, &format!("search, {count} patients")).await?;
        series.add("patients", "search", point);
    }
    Ok(())
}

async fn connections(fixture: &Fixture, series: &mut AllSeries) -> Outcome {
    let system = fixture.system("connections", &NO_REJECTIONS).await?;
    let url = format!("http://{}", system.patients[0].address());
    fixture.seed("connections", 0, BASE_PATIENTS).await?;
    for count in CONNECTIONS {
        for scenario in ["read", "create"] {
            let arguments = format!("closed {url} --scenario {scenario} -c {count} {TIMES}");
            let point = point(fixture, &arguments, count, &format!("{scenario}, {count} connections")).await?;
            series.add("connections", scenario, point);
        }
    }
    Ok(())
}

async fn partitions(fixture: &Fixture, series: &mut AllSeries) -> Outcome {
    for count in PARTITIONS {
        let name = format!("partitions{count}");
        let system = fixture.system(&name, &[("KAFKA_TOPIC_PARTITIONS", &count.to_string())]).await?;
        let url = format!("http://{}", system.patients[0].address());
        let arguments = format!("closed {url} --scenario create -c 64 {TIMES}");
        let created = point(fixture, &arguments, count, &format!("create, {count} partitions")).await?;
        series.add("partitions", "create", created);
        let event_latency = format!(
            "--analytics http://{} --kafka {} --topic {}",
            system.analytics.address(),
            fixture.broker.address(),
            system.backing_services().topic
        );
        smol::Timer::after(SETTLE_TIME).await;
        let arguments =
            split_words(&format!("open --rate {EVENT_LATENCY_RATE} {url} --scenario create {event_latency} {TIMES}"));
        let run = load::run(fixture.directory(), &arguments);
        let report = step(&format!("POST to applied, {count} partitions"), run).await?;
        let latency = |name: &str| figure(&report, &format!("/applied/latency/{name}"));
        let applied = Point { at: count, per_second: latency("perSecond"), p99_ms: latency("p99Ms") };
        series.add("partitions", "POST to applied", applied);
    }
    Ok(())
}

async fn point(fixture: &Fixture, arguments: &str, at: u64, what: &str) -> Outcome<Point> {
    fixture.cluster.run("postgres", "checkpoint").await?;
    let arguments = split_words(arguments);
    let report = step(what, load::run(fixture.directory(), &arguments)).await?;
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
