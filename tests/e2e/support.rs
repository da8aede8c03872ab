//! What several tests need.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use testbed::http::Client;

/// How long a test waits for what is going to happen.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A patient as a client sends one, with an email of its own.
pub(crate) fn patient(name: &str) -> Json {
    json!({
        "name": name,
        "email": format!("{:016x}@example.org", unique()),
        "address": "1 Main Street",
        "dateOfBirth": "1990-12-31",
    })
}

/// A number that no other call gives.
pub(crate) fn unique() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

/// Registers a patient; gives it as answered.
pub(crate) async fn register(client: &Client, name: &str) -> Json {
    let answer = client.post("/patients", &patient(name)).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

/// The path of a patient as answered.
pub(crate) fn path(patient: &Json) -> String {
    format!("/patients/{}", patient["id"].as_str().unwrap())
}

/// Waits for something that is going to happen.
pub(crate) async fn until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !happened().await {
        assert!(Instant::now() < end, "it has not happened: {what}");
        smol::Timer::after(Duration::from_millis(10)).await;
    }
}
