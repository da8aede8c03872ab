//! What flows between the parts, from the counters of the services.

use std::collections::BTreeMap;

use super::{BILLING, PATIENTS};
use crate::prometheus::Sample;

/// What flows along an edge of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flow {
    Requests,
    Commits,
    Calls,
    Entries,
    Sends,
    Applied,
    Stored,
}

/// The totals of what has flowed through a service, from its counters. Health and metrics are left out.
pub(super) fn counters(service: usize, samples: &[Sample]) -> BTreeMap<Flow, f64> {
    let sum = |name: &str, matches: &dyn Fn(&Sample) -> bool| {
        samples.iter().filter(|sample| sample.name == name && matches(sample)).map(|sample| sample.value).sum::<f64>()
    };
    match service {
        PATIENTS => {
            let is_patients =
                |sample: &Sample| sample.label("route").is_some_and(|route| route.starts_with("/patients"));
            let is_write = |sample: &Sample| {
                is_patients(sample)
                    && sample.label("method").is_some_and(|method| ["POST", "PUT", "DELETE"].contains(&method))
                    && sample.label("route") != Some("/patients/:id/billing/transactions")
                    && sample.label("status").is_some_and(|status| status.starts_with('2'))
            };
            BTreeMap::from([
                (Flow::Requests, sum("http_requests_total", &is_patients)),
                (Flow::Commits, sum("http_requests_total", &is_write)),
                (Flow::Sends, sum("relay_published_total", &|_| true)),
            ])
        }
        BILLING => {
            let is_billing =
                |sample: &Sample| sample.label("method").is_some_and(|method| method.contains("BillingService"));
            // Each successful call was a commit or a read.
            let is_successful = |sample: &Sample| {
                is_billing(sample) && sample.label("code").is_some_and(|code| code.eq_ignore_ascii_case("OK"))
            };
            BTreeMap::from([
                (Flow::Calls, sum("grpc_server_calls_total", &is_billing)),
                (Flow::Entries, sum("grpc_server_calls_total", &is_successful)),
            ])
        }
        _ => {
            let applied = sum("events_applied_total", &|_| true);
            let read = applied + sum("events_duplicate_total", &|_| true) + sum("events_dead_total", &|_| true);
            BTreeMap::from([(Flow::Applied, read), (Flow::Stored, applied)])
        }
    }
}
