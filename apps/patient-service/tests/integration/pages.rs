//! `GET /patients` with `page` or `size`: the later form of the originals.

use serde_json::json;

use crate::harness::{Harness, with_service};

async fn page(service: &Harness, query: &str) -> (Vec<String>, serde_json::Value) {
    let response = service.get(&format!("/patients?{query}")).await;
    assert_eq!(response.status, 200, "{query}: {}", response.text());
    let mut body = response.json();
    let patients = body.as_object_mut().unwrap().remove("patients").unwrap();
    let names =
        patients.as_array().unwrap().iter().map(|patient| patient["name"].as_str().unwrap().to_owned()).collect();
    (names, body)
}

#[test]
fn pages_are_counted_from_one() {
    with_service(|service| async move {
        for name in ["Cora", "Abel", "Dora", "Bert", "Emil"] {
            service.register(name).await;
        }
        let (names, rest) = page(&service, "page=1&size=2").await;
        assert_eq!(names, ["Abel", "Bert"]);
        assert_eq!(rest, json!({"page": 1, "size": 2, "totalPages": 3, "totalElements": 5}));
        assert_eq!(page(&service, "page=3&size=2").await.0, ["Emil"]);
        assert_eq!(page(&service, "page=4&size=2").await.0, Vec::<String>::new());
        assert_eq!(page(&service, "size=1&sort=desc").await.0, ["Emil"]);
        assert_eq!(page(&service, "page=1&size=2&sort=asc&sortField=email").await.0, ["Abel", "Bert"]);
        assert_eq!(page(&service, "page=1&size=1&sort=-email").await.0, ["Emil"]);
        assert_eq!(page(&service, "page=1001&size=100").await.0, Vec::<String>::new());
        assert_eq!(
            page(&service, "page=1").await.1,
            json!({"page": 1, "size": 10, "totalPages": 1, "totalElements": 5})
        );
        let (names, rest) = page(&service, "page=1&size=10&searchValue=ora").await;
        assert_eq!(names, ["Cora", "Dora"]);
        assert_eq!(rest["totalElements"], 2);
        assert_eq!(page(&service, "page=1&searchValue=%25").await.1["totalPages"], 0);
    });
}

#[test]
fn wrong_parameters_are_reported() {
    with_service(|service| async move {
        for wrong in
            ["page=0", "page=x", "size=0", "size=1001", "page=1&sort=age", "page=1&sortField=age", "page=1002&size=100"]
        {
            assert_eq!(service.get(&format!("/patients?{wrong}")).await.status, 400, "{wrong}");
        }
    });
}
