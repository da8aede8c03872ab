//! Sends load: registrations of samples at a fixed rate, each begun on time whatever the answers do.

use std::time::{Duration, Instant};

use runtime::Shutdown;
use smol::future::or;

use crate::{
    app::App,
    client::{Answer, ServiceRequest},
    samples,
};

/// Sends until the time is over, somebody ends it or the console stops.
pub(crate) async fn run(app: App, rate: u32, seconds: u64, stop: Shutdown) {
    let begun = Instant::now();
    let work = async {
        for number in 0..rate.saturating_mul(u32::try_from(seconds).unwrap_or(u32::MAX)) {
            smol::Timer::at(begun + Duration::from_secs(1) * number / rate).await;
            if app.load().send() {
                runtime::spawn(register(app.clone())).detach();
            }
        }
        // The last one belongs to the second that it begins.
        smol::Timer::at(begun + Duration::from_secs(seconds)).await;
    };
    or(work, or(stop.wait(), app.shutdown().wait())).await;
    app.load().end();
}

async fn register(app: App) {
    let body = serde_json::to_vec(&samples::named("Load")).unwrap_or_default();
    let headers = [("content-type", "application/json")];
    let outgoing = ServiceRequest { method: "POST", path: "/patients", headers: &headers, body: body.into() };
    let sent = Instant::now();
    let answer = app.ask_patients(outgoing).await;
    let is_right = answer.is_ok_and(|answer: Answer| answer.status == 201);
    app.load().answered(is_right.then(|| sent.elapsed()));
}
