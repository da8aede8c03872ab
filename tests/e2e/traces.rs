//! A trace goes through the whole system.

use serde_json::Value as Json;
use surf::http::Method;
use testbed::{broker::Kind, service::Service};

use crate::support::{PATIENCE, patient, system, until};

testbed::on_each_broker!(one_trace_from_the_request_to_analytics);

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn one_trace_from_the_request_to_analytics(kind: Kind) {
    runtime::block_on(2, async {
        let system = system(kind, &[("LOG_LEVEL", "debug")]).await;
        let parent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
        let headers = [("traceparent", parent.as_str())];
        let client = system.patient_client();
        let answer = client.send(Method::Post, "/patients", &headers, Some(&patient("Jane Doe"))).await.unwrap();
        assert!(answer.header("traceparent").unwrap().contains(TRACE_ID));
        system.until_summary(PATIENCE, |summary| summary["created"] == 1).await.unwrap();
        for (service, message) in [
            (&system.patients[0], "patient registered"),
            (&system.billing, "account opened"),
            (&system.analytics, "event read"),
        ] {
            until(message, async || traced(service, message)).await;
        }
        // Every line of the service itself is JSON; every line about a request has the trace.
        for line in system.patients[0].log().lines() {
            let line: Json = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            assert!(
                ["time", "level", "service", "target", "message"].iter().all(|field| line[field].is_string()),
                "{line}"
            );
            if line.get("route").is_some() {
                assert!(line["trace_id"].is_string(), "{line}");
            }
        }
    });
}

fn traced(service: &Service, message: &str) -> bool {
    service.log().lines().any(|line| {
        let line: Json = serde_json::from_str(line).unwrap_or_default();
        line["message"] == message && line["trace_id"] == TRACE_ID
    })
}
