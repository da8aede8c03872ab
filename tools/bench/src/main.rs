//! Measures the system against what it stands on: PostgreSQL by pgbench, hyper, librdkafka, tonic. Each pair is measured
//! in one run on one machine, and the ratio is the result: ratios can be compared between machines, times cannot.
//!
//! See docs/performance.md for the method and the figures.

use std::{fmt, path::PathBuf, process::ExitCode};

use clap::Parser;

mod chart;
mod cost;
mod creates;
mod edge;
mod fixture;
mod footprint;
mod growth;
mod lean;
mod load;
mod pgbench;
mod progress;
mod reads;
mod replay;
mod requirements;
mod results;
mod takeover;
mod tool;
mod unary;
mod updates;

use fixture::Fixture;
use results::Results;

/// Measures the system against what it stands on.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench", version)]
struct Options {
    /// Measure for a short time, and fail only if a ratio is far below what is recorded
    #[arg(long)]
    quick: bool,
    /// Run only these measurements
    #[arg(long, value_delimiter = ',', value_parser = MEASUREMENTS)]
    only: Vec<String>,
    /// A setting for every service; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Of lean: rates in operations a second, or the peak
    #[arg(long, value_delimiter = ',', default_value = lean::RATES, value_parser = rate)]
    rate: Vec<String>,
    /// Of lean: operations to measure
    #[arg(long, value_delimiter = ',', default_values = cost::ACTIONS, value_parser = cost::ACTIONS)]
    action: Vec<String>,
    /// Measure instead how the cost grows with patients, connections and partitions, which takes about 15 minutes
    #[arg(long)]
    growth: bool,
    /// With --growth: measure only these axes, and keep the recorded points of the others
    #[arg(long, value_delimiter = ',', value_parser = growth::AXES)]
    axis: Vec<String>,
    /// With --growth: the least number of patients
    #[arg(long, default_value_t = 0)]
    least_patients: u64,
    /// With --growth: the greatest number of patients, up to 5000000
    #[arg(long, default_value_t = 1_000_000)]
    most_patients: u64,
    /// The recorded results: what --quick compares with, and what a full run replaces with --record
    #[arg(long, default_value = "docs/performance/results.json")]
    results: PathBuf,
    /// Record the results
    #[arg(long)]
    record: bool,
    /// Print the recorded results, and measure nothing; with --growth, draw their chart anew
    #[arg(long)]
    show: bool,
}

impl Options {
    /// Where the chart of growth is, beside the results.
    fn chart(&self) -> PathBuf {
        self.results.with_file_name("growth.svg")
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| "expected NAME=VALUE".to_owned())?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn rate(text: &str) -> Result<String, String> {
    let is_rate = text == cost::PEAK || text.parse::<u64>().is_ok_and(|rate| rate > 0);
    if is_rate { Ok(text.to_owned()) } else { Err(format!("expected a number or {}", cost::PEAK)) }
}

const MEASUREMENTS: [&str; 9] =
    ["creates", "updates", "reads", "edge", "replay", "unary", "lean", "takeover", "images"];

/// Why there is no measurement: a message for the user.
#[derive(Debug)]
struct Failure(String);

impl<E: fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

type Outcome<T = ()> = Result<T, Failure>;

fn main() -> ExitCode {
    match runtime::block_on(1, run(&Options::parse())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure(why)) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Measures; false if a ratio is far below what is recorded, or a measurement given with `--only` cannot be run.
async fn run(options: &Options) -> Outcome<bool> {
    let recorded = Results::read(&options.results);
    if options.show {
        let recorded = recorded.ok_or_else(|| Failure(format!("{} cannot be read", options.results.display())))?;
        println!("{}\n{}", recorded.table(None), recorded.growth_table());
        if options.growth {
            std::fs::write(options.chart(), chart::svg(recorded.series()))?;
        }
        return Ok(true);
    }
    let mut results = Results::default();
    if options.growth {
        let fixture = Fixture::start(&options.settings).await?;
        results.growth(growth::measure(&fixture, options).await?);
        println!("{}", results.growth_table());
        if options.record {
            let merged = results.merged_over(recorded);
            merged.write(&options.results)?;
            std::fs::write(options.chart(), chart::svg(merged.series()))?;
        }
        return Ok(true);
    }
    let quick = options.quick;
    let mut selected: Vec<&str> = MEASUREMENTS.to_vec();
    if options.only.is_empty() {
        // They take minutes, and are compared with nothing.
        selected.retain(|name| !quick || !["lean", "takeover"].contains(name));
    } else {
        selected.retain(|name| options.only.iter().any(|only| only == name));
    }
    let all = selected.len();
    selected.retain(|name| match requirements::missing(name) {
        Some(missing) => {
            eprintln!("{name} is skipped: {missing} is missing");
            false
        }
        None => true,
    });
    let are_all = options.only.is_empty() || selected.len() == all;
    let is_selected = |name: &str| selected.contains(&name);
    if is_selected("images") {
        footprint::images(&mut results).await;
    }
    if is_selected("edge") {
        edge::measure(quick, &mut results).await?;
    }
    if is_selected("unary") {
        unary::measure(quick, &mut results).await?;
    }
    if ["creates", "updates", "reads", "replay", "takeover"].into_iter().any(is_selected) {
        let mut fixture = Fixture::start(&options.settings).await?;
        // First, while PostgreSQL is empty: autovacuum and checkpoints run for minutes after the others.
        if is_selected("replay") {
            replay::measure(&fixture, quick, &mut results).await?;
        }
        if is_selected("takeover") {
            takeover::measure(&fixture, quick, &mut results).await?;
        }
        if is_selected("reads") {
            reads::measure(&mut fixture, quick, &mut results).await?;
        }
        if is_selected("creates") {
            creates::measure(&mut fixture, quick, &mut results).await?;
        }
        if is_selected("updates") {
            updates::measure(&mut fixture, quick, &mut results).await?;
        }
    }
    if is_selected("lean") {
        // On a PostgreSQL of its own, which counts statements.
        let mut fixture = Fixture::start(&options.settings).await?;
        lean::measure(&mut fixture, options, &mut results).await?;
    }
    println!("{}", results.table(recorded.as_ref()));
    let regressions = if quick { results.regressions(recorded.as_ref()) } else { Vec::new() };
    if options.record {
        results.merged_over(recorded).write(&options.results)?;
    }
    for regression in &regressions {
        eprintln!("{regression}");
    }
    Ok(regressions.is_empty() && are_all)
}
