//! `seed`: registers plausible patients that are marked as samples.

use anyhow::{Result, anyhow};
use console::samples;
use futures_util::future::join_all;

use crate::{http::expect, secure, settings::Settings, terminal::step};

/// The default number of patients, and the largest.
const COUNT: usize = 200;
const MAX_COUNT: usize = 100_000;
/// Concurrent registrations.
const CLIENTS: usize = 16;

/// Registers `count` patients.
pub(crate) async fn run(settings: &Settings, count: Option<&str>) -> Result<()> {
    let count = match count {
        None => COUNT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|count| (1..=MAX_COUNT).contains(count))
            .ok_or_else(|| anyhow!("seed takes a number of patients from 1 to {MAX_COUNT}, not {text:?}."))?,
    };
    let patients = secure::client(settings, &settings.patient_address())?;
    let client = async |number: usize| {
        for _ in (number..count).step_by(CLIENTS) {
            let sample = serde_json::to_value(samples::patient())?;
            expect(&patients.post("/patients", &sample).await?, 201)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let work = async { join_all((0..CLIENTS).map(client)).await.into_iter().collect::<Result<()>>() };
    step(&format!("Registering {count} patients"), "", work).await?;
    println!("Browse them: {}patients", settings.console_url());
    Ok(())
}
