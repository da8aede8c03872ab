//! One trace through the whole system.

use serde_json::Value as Json;
use surf::http::Method;

use testbed::until;

use crate::{
    running_system::{Counts, RunningSystem},
    support::{patient, unique},
};

/// Registers a patient in a trace. `lines` are components with log messages that must have the trace id.
pub(crate) async fn of_a_registration(system: &RunningSystem, lines: &[(&str, &str)]) {
    let trace_id = format!("{:016x}{:016x}", unique(), unique());
    let parent = format!("00-{trace_id}-00f067aa0ba902b7-01");
    let headers = [("traceparent", parent.as_str())];
    let before = system.counts().await;
    let response = system.patients.send(Method::Post, "/patients", &headers, Some(&patient("Jane Doe"))).await.unwrap();
    assert!(response.header("traceparent").unwrap().contains(&trace_id));
    system.until_counted(before, Counts { active: 1, created: 1, ..Counts::default() }).await;
    for (component, message) in lines {
        let traced = |line: &str| {
            let line: Json = serde_json::from_str(line).unwrap_or_default();
            line["message"] == *message && line["trace_id"] == trace_id.as_str()
        };
        until(message, async || (system.log)(component).lines().any(traced)).await;
    }
    // Every line of the service is JSON; every line about a request has the trace id.
    for line in (system.log)("patient-service").lines() {
        let line: Json = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(
            ["time", "level", "service", "target", "message"].iter().all(|field| line[field].is_string()),
            "{line}"
        );
        if line.get("route").is_some() {
            assert!(line["trace_id"].is_string(), "{line}");
        }
    }
}
