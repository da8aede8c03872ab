//! The series of registrations.

use codec::event::EventKind::{Created, Deleted};
use serde_json::json;
use testbed::broker;
use uuid::Uuid;

use crate::harness::with_topic;

testbed::on_each_broker!(registrations_are_returned_as_a_series);

fn registrations_are_returned_as_a_series(kind: broker::Kind) {
    with_topic(kind, |mut topic| async move {
        let one = Uuid::now_v7();
        topic.publish(&[(one, Created, 1), (Uuid::now_v7(), Created, 1), (one, Deleted, 2)]).await;
        let service = topic.start(&[]).await;
        service.until_applied(3).await;
        for (query, series) in [
            ("", json!([{"period": "2024-02", "registrations": 2}])),
            ("?interval=day", json!([{"period": "2024-02-29", "registrations": 2}])),
            ("?interval=year&from=2024-01-01&to=2024-12-31", json!([{"period": "2024", "registrations": 2}])),
            ("?from=2024-03-01", json!([])),
        ] {
            assert_eq!(service.get(&format!("/analytics/registrations{query}")).await.json(), series, "{query}");
        }
        let wrong = service.get("/analytics/registrations?interval=week&from=soon").await;
        assert_eq!(wrong.status, 400);
        assert_eq!(wrong.json()["errors"].as_object().unwrap().len(), 2);
        assert_eq!(service.get("/analytics/nothing").await.status, 404);
        service.stop().await;
    });
}
