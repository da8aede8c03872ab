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
mod needs;
mod pgbench;
mod reads;
mod replay;
mod results;
mod show;
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
    /// Measure only these parts
    #[arg(long, value_delimiter = ',', value_parser = PARTS)]
    only: Vec<String>,
    /// A setting for every service, to try what it does; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Of lean: rates to be offered, in operations a second, or the peak
    #[arg(long, value_delimiter = ',', default_value = lean::RATES, value_parser = rate)]
    rate: Vec<String>,
    /// Of lean: what is done
    #[arg(long, value_delimiter = ',', default_values = cost::ACTIONS, value_parser = cost::ACTIONS)]
    action: Vec<String>,
    /// Measure instead how the cost grows with patients, connections and partitions, which takes about 15 minutes
    #[arg(long)]
    growth: bool,
    /// With --growth: measure only these axes, and leave what is recorded of the others
    #[arg(long, value_delimiter = ',', value_parser = growth::AXES)]
    axis: Vec<String>,
    /// With --growth: patients from which on it is measured
    #[arg(long, default_value_t = 0)]
    least_patients: u64,
    /// With --growth: patients up to which it is measured; it goes up to 5000000
    #[arg(long, default_value_t = 1_000_000)]
    most_patients: u64,
    /// The recorded results: what --quick compares with, and what a full run replaces with --record
    #[arg(long, default_value = "docs/performance/results.json")]
    results: PathBuf,
    /// Write the results down
    #[arg(long)]
    record: bool,
    /// Print what is recorded, and measure nothing
    #[arg(long)]
    show: bool,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').ok_or_else(|| "expected NAME=VALUE".to_owned())?;
    Ok((parts.0.to_owned(), parts.1.to_owned()))
}

fn rate(text: &str) -> Result<String, String> {
    let is_rate = text == cost::PEAK || text.parse::<u64>().is_ok_and(|rate| rate > 0);
    if is_rate { Ok(text.to_owned()) } else { Err(format!("expected a number or {}", cost::PEAK)) }
}

const PARTS: [&str; 8] = ["creates", "updates", "reads", "edge", "replay", "unary", "lean", "images"];

/// Why there is no measurement, as the user should read it.
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

/// Measures; false if a ratio is far below what is recorded, or a part that was asked for by its name cannot be measured.
async fn run(options: &Options) -> Outcome<bool> {
    let recorded = Results::read(&options.results);
    if options.show {
        let recorded = recorded.ok_or_else(|| Failure(format!("{} cannot be read", options.results.display())))?;
        println!("{}\n{}", recorded.table(None), recorded.growth_table());
        return Ok(true);
    }
    let mut results = Results::default();
    if options.growth {
        let ground = Fixture::start(&options.settings).await?;
        results.growth(growth::measure(&ground, options).await?);
        println!("{}", results.growth_table());
        if options.record {
            let chart = options.results.with_file_name("growth.svg");
            let merged = results.merged_over(recorded);
            merged.write(&options.results)?;
            std::fs::write(chart, chart::svg(merged.series()))?;
        }
        return Ok(true);
    }
    let quick = options.quick;
    let mut parts: Vec<&str> = PARTS.to_vec();
    if options.only.is_empty() {
        // It takes minutes, and has no counterpart.
        parts.retain(|part| !quick || *part != "lean");
    } else {
        parts.retain(|part| options.only.iter().any(|only| only == part));
    }
    let all = parts.len();
    parts.retain(|part| match needs::missing(part) {
        Some(missing) => {
            eprintln!("{part} is left out, because it needs what is not here: {missing}");
            false
        }
        None => true,
    });
    let are_all = options.only.is_empty() || parts.len() == all;
    let wanted = |part: &str| parts.contains(&part);
    if wanted("images") {
        footprint::images(&mut results).await;
    }
    if wanted("edge") {
        edge::measure(quick, &mut results).await?;
    }
    if wanted("unary") {
        unary::measure(quick, &mut results).await?;
    }
    if ["creates", "updates", "reads", "replay"].into_iter().any(wanted) {
        let mut ground = Fixture::start(&options.settings).await?;
        // Before anything is in PostgreSQL, which cleans up for minutes afterwards.
        if wanted("replay") {
            replay::measure(&ground, quick, &mut results).await?;
        }
        if wanted("reads") {
            reads::measure(&mut ground, quick, &mut results).await?;
        }
        if wanted("creates") {
            creates::measure(&mut ground, quick, &mut results).await?;
        }
        if wanted("updates") {
            updates::measure(&mut ground, quick, &mut results).await?;
        }
    }
    if wanted("lean") {
        // On a PostgreSQL of its own, which counts statements.
        let mut ground = Fixture::start(&options.settings).await?;
        lean::measure(&mut ground, options, &mut results).await?;
    }
    println!("{}", results.table(recorded.as_ref()));
    let regressions = if quick { results.far_below(recorded.as_ref()) } else { Vec::new() };
    if options.record {
        results.merged_over(recorded).write(&options.results)?;
    }
    for regression in &regressions {
        eprintln!("{regression}");
    }
    Ok(regressions.is_empty() && are_all)
}
