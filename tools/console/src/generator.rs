//! Generates load: registers samples at a fixed rate, in an open loop.

use std::time::{Duration, Instant};

use runtime::Shutdown;
use smol::future::or;

use crate::{
    app::App,
    client::{ServiceRequest, ServiceResponse},
    samples,
};

/// Sends until the time is over, the load is stopped or the console stops.
pub(crate) async fn run(app: App, rate: u32, seconds: u64, stop: Shutdown) {
    let begun = Instant::now();
    let work = async {
        for number in 0..rate.saturating_mul(u32::try_from(seconds).unwrap_or(u32::MAX)) {
            smol::Timer::at(begun + Duration::from_secs(1) * number / rate).await;
            if app.load().start_request() {
                runtime::spawn(register(app.clone())).detach();
            }
        }
        // The load lasts until the end of its last second.
        smol::Timer::at(begun + Duration::from_secs(seconds)).await;
    };
    or(work, or(stop.wait(), app.shutdown().wait())).await;
    app.load().end();
}

async fn register(app: App) {
    let body = serde_json::to_vec(&samples::with_prefix("Load")).unwrap_or_default();
    let headers = [("content-type", "application/json")];
    let outgoing = ServiceRequest { method: "POST", path: "/patients", headers: &headers, body: body.into() };
    let sent = Instant::now();
    let answer = app.call_patient_service(outgoing).await;
    let is_success = answer.is_ok_and(|answer: ServiceResponse| answer.status == 201);
    app.load().end_request(is_success.then(|| sent.elapsed()));
}
